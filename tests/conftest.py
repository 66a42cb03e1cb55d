"""Tests run side by side: one thread each, in worker processes too, and no figure windows."""

from __future__ import annotations

import os
import warnings

import torch

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
torch.set_num_threads(1)
with warnings.catch_warnings():  # torch 2.13 calls its own deprecated torch.jit.script when forward mode is first used
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp
