"""Where the vectors of an iteration are kept, decided and declared before it runs."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import psutil
import torch
from torch import Tensor

from genmeasure.errors import InputError

SHARE = 0.5
"""Of what is free, this much may be taken by vectors that are kept; the rest is for the products that make them."""
HOST = torch.device("cpu")
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
log = logging.getLogger("genmeasure")


def free_bytes(device: torch.device) -> int:
    """Memory of a device that is free now; for the host, what can be had without swapping, and no more than the
    container's limit where there is one.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no such file outside a container, `max` where there is no limit
        available = min(available, int(CONTAINER_LIMIT.read_text()))
    return available


def places(device: torch.device) -> tuple[torch.device, ...]:
    """Where vectors of a computation on `device` may be kept, the best first.

    Other devices than CUDA's share the host's memory, and not all of them know float64.
    """
    return (device, HOST) if device.type == "cuda" else (HOST,)


def basis_place(vectors: int, size: int, like: Tensor, *, parameter: str) -> torch.device:
    """The device that keeps `vectors` vectors of `size` numbers of the dtype of `like`.

    That is the device of `like`, where they are made, if they take at most `SHARE` of what is free there, else the
    host. What is declared is logged. parameter: the name of what bounds the number of vectors, for the message. Raises
    `InputError` where they fit nowhere.
    """
    one = size * like.element_size()
    free = {place: free_bytes(place) for place in places(like.device)}
    for place, there in free.items():
        if vectors * one <= SHARE * there:
            log.info("%d vectors of %d numbers: %d bytes on %s, where %d are free", vectors, size, vectors * one,
                     place, there)
            return place
    fit = int(SHARE * max(free.values()) // one)
    listed = " and ".join(f"{readable(there)} on {place}" for place, there in free.items())
    remedy = f"take {parameter}={fit}" if fit else "free memory or choose a smaller network"
    raise InputError(f"{parameter}={vectors} vectors of {size} numbers take {readable(vectors * one)}, but {listed} "
                     f"{'is' if len(free) == 1 else 'are'} free, of which {SHARE:.0%} may be used; {remedy}")


def readable(count: float) -> str:
    """Bytes in the unit that suits: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
