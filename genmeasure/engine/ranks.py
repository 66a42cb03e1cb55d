"""The processes that torchrun started, as one engine: they share every pass over the data."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import math
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genmeasure.data.batches import Batch, Batches
from genmeasure.engine.local import LocalEngine
from genmeasure.engine.protocol import QUIET, Engine, Fitted, T, added, get_device, shown, stacking, summing
from genmeasure.errors import InputError, LostRank

PATIENCE = datetime.timedelta(hours=1)
"""How long a rank waits for others that are alive and busy."""
LEAVING = datetime.timedelta(seconds=30)
"""How long a rank waits at the end for the others to be through."""
BEAT, SILENCE = 2.0, 20.0
"""Seconds between two signs of life of a rank, and without one after which it counts as lost."""
KEPT = "what is complete is kept, and the same command goes on from there"
END = "the end of a block"
SHORT, SMALL = 4096, 2**16
"""Bytes of a message that travels in one round, and of tensors that travel in messages."""
HOST = torch.device("cpu")


class FailedElsewhere(RuntimeError):
    """What was raised on another rank alone."""


@dataclass(frozen=True)
class Share:
    """A rank's part of a batch. lengths: [ranks], how many of its examples each rank has."""

    position: int
    part: Batch
    lengths: tuple[int, ...]


def shares(batches: Iterable[Batch], rank: int, size: int) -> Iterator[Share]:
    """The part of every batch that a rank takes, which may be empty.

    Whole batches as long as there is one for every rank: what is drawn for a batch is then drawn once. The batches that
    are left over are cut, one slice for each rank.
    """
    source = iter(shown(batches))
    known = len(batches) // size * size if isinstance(batches, Sized) else None
    for start in itertools.count(0, size):
        if known is not None and start < known:  # nobody needs to hold the batches of the others
            some: Iterable[Batch] = itertools.islice(source, size)
            whole = True
        else:
            some = list(itertools.islice(source, size))
            whole = len(some) == size
        position = start - 1
        for position, batch in enumerate(some, start):
            if whole:
                owner = position - start
                lengths = tuple(len(batch) if r == owner else 0 for r in range(size))
                yield Share(position, batch if rank == owner else batch.select(slice(0)), lengths)
            else:
                yield slices(position, batch, rank, size)
        if position < start + size - 1:
            return


def slices(position: int, batch: Batch, rank: int, size: int) -> Share:
    """A rank's part of a batch that all ranks share."""
    ends = [len(batch) * r // size for r in range(size + 1)]
    return Share(position, batch.select(slice(ends[rank], ends[rank + 1])),
                 tuple(b - a for a, b in itertools.pairwise(ends)))


class Ranks:
    """An engine of several processes, each of which calls the same functions in the same order.

    What fails on one rank fails on all of them; a rank that is gone raises `LostRank` on the others. Only sums and rows
    of examples travel. device: of this rank, where its sums of tensors are.
    """

    def __init__(self, device: torch.device):
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self._number, self.copies = 0, self.size
        self.remote, self.processes = False, 1

    @property
    def lead(self) -> bool:
        return self.rank == 0

    @property
    def within(self) -> Ranks:
        return self

    def batch_sums(self, fn: Callable[[Batch], Tensor], batches: Batches) -> Tensor:
        fn = summing(fn)

        def work() -> Tensor | None:
            found, count = {}, 0
            for share, mine in self._taken(fn, batches):
                count += 1
                if mine is not None:
                    found[share.position] = mine.detach().to(dtype=torch.float64, device="cpu")
            if not found:
                return None
            nothing = torch.zeros_like(next(iter(found.values())))
            return torch.stack([found.get(position, nothing) for position in range(count)])
        return self._added_up("batch sums", work, HOST)

    def sum(self, fn: Callable[[Batch], Any], batches: Batches | Iterable[Batch]) -> Any:
        fn = summing(fn)

        def work() -> Any:
            total = None
            for _, mine in self._taken(fn, batches):
                if mine is not None:
                    total = added(total, mine)
            return total
        return self._added_up("sum", work, self.device)

    def examples(self, fn: Callable[[Batch], Tensor], batches: Batches | Iterable[Batch], *,
                 core_each: bool = False) -> Tensor:
        fn, mine, lengths = stacking(fn), None, []

        def work() -> Tensor | Like | None:
            nonlocal mine
            rows = []
            for share, found in self._taken(fn, batches):
                lengths.append(share.lengths)
                if found is not None:
                    rows.append(found.detach().cpu())
            mine = torch.cat(rows) if rows else None
            return _message(mine)
        tables = self._pass("rows of examples", work)
        like = next(x for x in tables if x is not None)
        empty = torch.empty(0, *like.shape[1:], dtype=like.dtype)
        tables = [empty if x is None else x for x in tables]
        if any(isinstance(x, Like) for x in tables):
            tables = self._gathered(empty if mine is None else mine, [x.shape[0] for x in tables])
        parts = [iter(table.split([n[r] for n in lengths])) for r, table in enumerate(tables)]
        return torch.cat([next(part) for _ in lengths for part in parts])

    def map(self, fn: Callable[[Any, int], Iterator[T]], tasks: Sequence[Any], description: str) -> Iterator[T]:
        """One task after the other, each by all ranks."""
        return LocalEngine().map(fn, tasks, description)

    def once(self, fn: Callable[[], T]) -> T:
        return self._pass("what one rank does", lambda: fn() if self.lead else None)[0]

    def total(self, number: float) -> float:
        return sum(self._pass("total", lambda: number))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        error = None
        try:
            yield
        except LostRank:
            raise
        except Exception as raised:
            error = raised
        while True:  # the others may still be on their way, and hear of the error first
            places, _, errors = self._heard(END, None, error)
            if all(place == END for place in places):
                break
        self._number = 0  # a rank that failed alone has not counted with the others
        if error is not None:
            raise error
        self._raise(errors)

    def _taken(self, fn: Fitted, batches: Batches | Iterable[Batch]) -> Iterator[tuple[Share, Any]]:
        """This rank's part of every batch, and what `fn` gives for it; None where it is empty."""
        for share in shares(batches, self.rank, self.size):
            yield share, fn(share.part) if len(share.part) else None

    def _pass(self, what: str, work: Callable[[], Any]) -> list[Any]:
        """What `work` returns on every rank, once all are through with it; raises on all if it raises on one."""
        self._number += 1
        place, error, content = f"{what} number {self._number}", None, None
        copies, self.copies = self.copies, 1
        try:
            content = work()
        except LostRank:
            raise
        except Exception as raised:
            error = raised
        finally:
            self.copies = copies
        return self._met(place, content, error)

    def _met(self, place: str, content: Any, error: Exception | None) -> list[Any]:
        """What every rank brings to `place`; raises on all if one comes with an error, or from elsewhere."""
        places, contents, errors = self._heard(place, content, error)
        if error is not None:
            raise error
        self._raise(errors)
        if len(set(places)) > 1:
            raise LostRank(f"the ranks are at different places ({', '.join(dict.fromkeys(places))}): the model or the "
                           f"data differ between them; give every rank the same, and the same machine; {KEPT}")
        return contents

    def _heard(self, place: str, content: Any, error: Exception | None) -> tuple[list, list, list]:
        """Where every rank is, what it brings, and what it raised (whether it is bad input, and the sentence)."""
        told = error and (isinstance(error, InputError), str(error) if isinstance(error, InputError) else
                          f"{type(error).__name__}: {error}")
        return tuple(map(list, zip(*_exchanged((place, content, told)), strict=True)))

    def _raise(self, errors: Sequence[tuple[bool, str] | None]) -> None:
        """What another rank raised, if any did."""
        for rank, told in enumerate(errors):
            if told is not None:
                raise InputError(told[1]) if told[0] else FailedElsewhere(f"{told[1]} (on rank {rank})")

    def _added_up(self, what: str, work: Callable[[], Any], device: torch.device) -> Any:
        """The sum over ranks of what `work` returns: a tensor, a dict of tensors, or None where there was nothing."""
        mine = None

        def message() -> Any:
            nonlocal mine
            mine = work()
            return _message(mine)
        found = [x for x in self._pass(what, message) if x is not None]
        if not found:
            return None
        like = found[0] if isinstance(found[0], dict) else {None: found[0]}
        if isinstance(next(iter(like.values())), Like):
            mine = mine if isinstance(mine, dict) else {None: mine}
            total = {k: self._reduced(mine.get(k), x, device) for k, x in like.items()}
        else:
            total = functools.reduce(added, (x if isinstance(x, dict) else {None: x} for x in found))
            total = {k: x.to(device) for k, x in total.items()}
        return total if isinstance(found[0], dict) else total[None]

    def _reduced(self, tensor: Tensor | None, like: Like, device: torch.device) -> Tensor:
        tensor = torch.zeros(like.shape, dtype=like.dtype, device=device) if tensor is None else (
            tensor.detach().contiguous())
        with _connected():
            dist.all_reduce(tensor)
        return tensor

    def _gathered(self, mine: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Every rank's rows, of any dtype, as bytes padded to the longest."""
        row = math.prod(mine.shape[1:]) * mine.element_size()
        with _connected():
            tables = _gathered_bytes(mine.contiguous().reshape(-1).view(torch.uint8), max(counts) * row)
        return [table[:n * row].view(mine.dtype).reshape(n, *mine.shape[1:])
                for n, table in zip(counts, tables, strict=True)]


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Around what needs the others."""
    try:
        yield
    except RuntimeError as error:
        raise LostRank(f"another rank is gone ({str(error).splitlines()[0]}); {KEPT}") from error


@dataclass(frozen=True)
class Like:
    """A tensor that is too large to travel in a message."""

    shape: torch.Size
    dtype: torch.dtype


def _message(found: Tensor | dict[Any, Tensor] | None) -> Any:
    """What was found if it is small, else what it is like."""
    if found is None:
        return None
    tensors = found if isinstance(found, dict) else {None: found}
    small = sum(t.nbytes for t in tensors.values()) <= SMALL
    told = {k: t.detach().cpu().clone() if small else Like(t.shape, t.dtype) for k, t in tensors.items()}
    return told if isinstance(found, dict) else told[None]


def _exchanged(message: Any) -> list[Any]:
    """The messages of all ranks, in one round where all are short."""
    data = pickle.dumps(message)
    mine = torch.frombuffer(bytearray(len(data).to_bytes(8, "little") + data), dtype=torch.uint8)
    with _connected():
        heads = _gathered_bytes(mine[:SHORT], SHORT)
        sizes = [8 + int.from_bytes(bytes(head[:8].tolist()), "little") for head in heads]
        tails = _gathered_bytes(mine[SHORT:], max(sizes) - SHORT) if max(sizes) > SHORT else [mine[:0]] * len(heads)
    return [pickle.loads(torch.cat([head, tail])[8:size].numpy().tobytes())
            for head, tail, size in zip(heads, tails, sizes, strict=True)]


def _gathered_bytes(mine: Tensor, length: int) -> list[Tensor]:
    """Every rank's bytes, filled up to `length`."""
    padded = torch.zeros(length, dtype=torch.uint8)
    padded[:len(mine)] = mine
    tables = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
    dist.all_gather(tables, padded)
    return tables


def asked_for() -> bool:
    """Whether torchrun, or whatever sets its variables, started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def leads() -> bool:
    """Whether this process speaks to the user: rank 0 of several, or a process by itself."""
    return not asked_for() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Engine]:
    """The ranks that torchrun started, this process among them; without it `LocalEngine`.

    Sums travel by NCCL between GPUs and by gloo between CPUs. With a GPU, every rank of a machine takes the one of its
    own number. Raises `InputError` for more ranks than GPUs.
    """
    if not asked_for():
        yield LocalEngine()
        return
    place = get_device(device)
    if place.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise InputError(f"rank {local} of this machine came for {torch.cuda.device_count()} GPUs; start as many "
                             "processes as there are GPUs, or take --device cpu")
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    if not leads():
        os.environ[QUIET] = "1"
    before = signal.signal(signal.SIGTERM, _told_to_end)
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    last = dist.new_group(backend="gloo")  # what alone has a barrier that ends by itself
    ended = threading.Event()
    threading.Thread(target=_watch, args=(dist.get_rank(), dist.get_world_size(), ended), daemon=True).start()
    together = False
    try:
        yield Ranks(place)
        together = True
    except InputError:
        together = True
        raise
    finally:
        ended.set()
        if together:  # who closes its connections too soon is taken for lost by those that still read from them
            with contextlib.suppress(RuntimeError, ValueError):
                dist.monitored_barrier(last, timeout=LEAVING)
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


def _told_to_end(*_: Any) -> None:
    raise LostRank(f"this rank was told to end, as torchrun does when another one is gone; {KEPT}")


def _watch(rank: int, size: int, ended: threading.Event) -> None:
    """Give signs of life, and end this process when a rank that it looks at gives none.

    Rank 0 looks at all others and they at rank 0. A broken connection is noticed at once elsewhere; this is for a
    machine that is gone, and for a process that hangs.
    """
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    others = [r for r in range(size) if r != rank and 0 in (r, rank)]
    seen = dict.fromkeys(others, (0, time.monotonic()))
    for beat in itertools.count(1):
        if ended.wait(BEAT):
            with contextlib.suppress(RuntimeError):
                store.add(_sign(rank), 10**9)  # it is through, and never counts as lost
            return
        try:
            store.add(_sign(rank), 1)
            counts = {r: store.add(_sign(r), 0) for r in others}
        except RuntimeError:
            counts = {}
        for r, (count, when) in seen.items():
            if counts.get(r, count) != count:
                seen[r] = counts[r], time.monotonic()
            elif time.monotonic() - when > SILENCE and count < 10**9 and beat * BEAT > SILENCE:
                sys.stderr.write(f"genmeasure: rank {r} has given no sign of life for {SILENCE:.0f} s; {KEPT}\n")
                sys.stderr.flush()
                os._exit(1)  # the main thread waits for that rank


def _sign(rank: int) -> str:
    return f"genmeasure/alive/{rank}"
