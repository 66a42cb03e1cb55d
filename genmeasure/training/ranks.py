"""The processes that train one model together, each on a slice of every batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genmeasure.data.batches import Batch

APART = 1 << 32
"""Between the seeds of two ranks' global generators, from which dropout draws."""


@dataclass(frozen=True)
class Ranks:
    """group: of a model in `DistributedDataParallel`; None is this process by itself, without any communication.

    Sums are the same on all ranks bit for bit.
    """

    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """Those that train a model, if it is wrapped for them."""
        return cls(model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None)

    @property
    def size(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def lead(self) -> bool:
        """Whether this is the rank that writes files and speaks to the user."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This rank's slice, which may be empty."""
        if self.size == 1:
            return batch
        return batch.select(slice(len(batch) * self.rank // self.size, len(batch) * (self.rank + 1) // self.size))

    def sum(self, tensor: Tensor) -> Tensor:
        """Over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    @torch.no_grad()
    def sum_gradients(self, model: nn.Module) -> None:
        """Every `.grad` becomes the sum over the ranks; None where it is None on all of them."""
        if self.size == 1:
            return
        parameters = sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: str(p.dtype))
        for _, some in itertools.groupby(parameters, key=lambda p: p.dtype):
            self._sum_gradients(list(some))

    def _sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        reached = torch.stack([torch.ones_like(p.view(-1)[0]) * (p.grad is not None) for p in parameters])
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        total = self.sum(torch.cat([reached, *parts]))
        for p, hit, part in zip(parameters, total[:len(parameters)].tolist(),
                                total[len(parameters):].split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p).clone() if hit else None

    @torch.no_grad()
    def average_statistics(self, model: nn.Module) -> None:
        """Running means and variances of normalisation layers become the mean over the ranks, each of which has seen
        its slice."""
        if self.size > 1:
            for name, buffer in model.named_buffers():
                if name.rpartition(".")[2] in ("running_mean", "running_var"):
                    self.sum(buffer).div_(self.size)

    def gathered(self, states: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Tensors of the same names and shapes on all ranks, "name.rank" for each; as they are for one rank."""
        if self.size == 1:
            return dict(states)
        found = {}
        for name, tensor in states.items():
            parts = [torch.empty_like(tensor, device=device) for _ in range(self.size)]
            dist.all_gather(parts, tensor.to(device), group=self.group)
            found |= {f"{name}.{rank}": part.cpu() for rank, part in enumerate(parts)}
        return found

    def own(self, states: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """What of `gathered` belongs to this rank."""
        ending = "" if self.size == 1 else f".{self.rank}"
        return {name: states[f"{name}{ending}"] for name in names}

    def agreed(self, numbers: Sequence[float], device: torch.device) -> list[float]:
        """The numbers of rank 0."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.broadcast(found, dist.get_global_rank(self.group, 0), group=self.group)
        return found.tolist()

    def lead_does(self, what: Callable[[], None]) -> None:
        """On rank 0 alone, while the others wait; what is raised there is raised on all."""
        if self.size == 1:
            what()
            return
        raised: list[Exception | None] = [None]
        if self.lead:
            try:
                what()
            except Exception as error:
                raised = [error]
        dist.broadcast_object_list(raised, dist.get_global_rank(self.group, 0), group=self.group)
        if raised[0] is not None:
            raise raised[0]
