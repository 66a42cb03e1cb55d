"""Low-rank factors as a folder that PEFT reads."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from genmeasure.checkpoints.write import write
from genmeasure.errors import InputError
from genmeasure.layers import CONVOLUTIONS, transposed
from genmeasure.training.adapters.low_rank import LowRankAdapter, LowRankChange


def write_peft(folder: str | Path, adapter: LowRankAdapter, model: nn.Module, *, base: str = "") -> Path:
    """Write the factors of a finished run and its whole head, and return the folder.

    adapter: `result.algorithm.adapter`. model: `result.model`, for the head. base: name or path of the start, which the
    reader needs beside the factors. Running statistics that moved are not in it: for a network with BatchNorm, write
    the merged weights instead. Raises `InputError` for factors that have no place in this format (of attention's joint
    projection or a transposed convolution, or of Linear beside transformers' Conv1D), and when no run is finished.
    """
    folder = Path(folder)
    if not adapter.changes:
        raise InputError("an adapter came that was never attached; give result.algorithm.adapter after fine_tune")
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in adapter.names}
    for name, module in modules.items():
        if not (isinstance(module, (nn.Linear, *CONVOLUTIONS)) or transposed(module)):
            raise InputError(f"factors of {name} in a {type(module).__name__} came, which this format does not know; "
                             "write the merged weights instead")
    turned = {transposed(module) for module in modules.values()}
    if len(turned) > 1:
        raise InputError("factors of both Linear and Conv1D came, of which this format tells only one kind; write the "
                         "merged weights instead")
    tensors = {f"base_model.model.{name}": tensor for name, tensor in model.state_dict().items()
               if adapter.context.in_head(name)}
    for name, module in modules.items():
        a, b = _halves(adapter.changes[name], module)
        path = f"base_model.model.{name.rpartition('.')[0]}"
        tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": adapter.rank, "lora_alpha": adapter.alpha,
                "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": turned == {True}, "inference_mode": True,
                "target_modules": [name.rpartition(".")[0] for name in adapter.names],
                "modules_to_save": [adapter.context.head]}
    write(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def _halves(change: LowRankChange, module: nn.Module) -> tuple[Tensor, Tensor]:
    """A [rank, in, height, width] and B [out, rank, 1, 1]; without the last two for a linear layer."""
    a, b = change.a.detach(), change.b.detach()
    if transposed(module):  # whose weight is [in, out]
        return b.T, a.T
    kernel = module.weight.shape[2:]
    return a.reshape(len(a), -1, *kernel), b.reshape(*b.shape, *[1] * len(kernel))
