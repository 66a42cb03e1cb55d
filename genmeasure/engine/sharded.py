"""Ranks that hold a model together: all of them run every forward pass, each on its part of the batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from genmeasure.data.batches import Batch, Batches
from genmeasure.engine.protocol import Fitted, shown
from genmeasure.engine.ranks import Ranks, Share, slices
from genmeasure.errors import LostRank


class Sharded(Ranks):
    """As `Ranks`, where a forward pass gathers weights from all ranks, so that every rank takes part in each.

    Every batch is cut, one slice for each rank. A rank whose slice is empty runs the first example, for its part of the
    weights, and drops the result; that costs no passes. A batch that does not fit into memory is not halved: one rank
    would halve it alone.
    """

    def _taken(self, fn: Fitted, batches: Batches | Iterable[Batch]) -> Iterator[tuple[Share, Any]]:
        for position, batch in enumerate(shown(batches)):
            share = slices(position, batch, self.rank, self.size)
            found, error, copies = None, None, self.copies
            if not len(share.part):
                self.copies = math.inf
            try:
                found = fn.fn(share.part if len(share.part) else batch.select(slice(1)))
            except LostRank:
                raise
            except Exception as raised:
                error = raised
            finally:
                self.copies = copies
            self._met(f"batch {position}", None, error)  # none goes on to a forward pass that another will not join
            yield share, found if len(share.part) else None
