"""Load tensors into a model by name, and tell whether two sets of tensors are the same."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from genmeasure.checkpoints.read import bare_names
from genmeasure.errors import InputError, unknown

SHOWN = 3
COUNTER = "num_batches_tracked"
"""Absent from checkpoints of torch < 0.4.1, and without effect on what a trained model computes."""


def match(model: nn.Module, tensors: Mapping[str, Tensor], *, head: str | Sequence[str] | None = None) -> list[str]:
    """Load `tensors` into `model` by name; every name and shape must agree, else nothing is loaded.

    What wrappers put in front of names (`module.`, `_orig_mod.`) is disregarded on both sides. Of tied weights, one
    is enough. head: name of a module whose weights may be absent, of another shape or differently called, such as
    the head of a pretrained start with other classes; it is then left as it is, as a whole. Several may be named.

    Returns the model's names that were left out, all of them under a head. Raises `InputError` that lists missing,
    unexpected and mis-shaped names, and for weights that are no floating-point numbers.
    """
    state = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
    ours = {bare: name for name, bare in bare_names(state).items()}
    bare = bare_names(tensors)
    theirs = {bare[k]: v for k, v in tensors.items() if isinstance(v, Tensor)}
    heads = [_head(ours, name) for name in ([head] if isinstance(head, str) else head or [])]
    _check_tied(ours, state, theirs)

    _check_floating(ours, state, theirs)
    missing = {k for k in ours if k not in theirs and k.rpartition(".")[2] != COUNTER}
    missing -= _tied_to_present(ours, state, theirs)
    unexpected = {k for k in theirs if k not in ours}
    misshaped = {k for k in ours if k in theirs and state[ours[k]].shape != theirs[k].shape}

    within, left_out = set(), set()
    for name in filter(None, heads):
        below = {k for k in (*ours, *theirs) if k == name or k.startswith(f"{name}.")}
        within |= below
        left_out |= below & ours.keys() if below & (missing | misshaped) else set()
    problems = missing - within, unexpected - within, misshaped - within
    if any(problems):
        raise InputError(_sentence(*problems, ours, state, theirs))

    model.load_state_dict({ours[k]: v for k, v in theirs.items() if k in ours and k not in left_out}, strict=False)
    return sorted(ours[k] for k in left_out)


def task_modules(model: nn.Module) -> list[str]:
    """What transformers puts on a pretrained base for a task, known by its looks; a base alone has none of it."""
    base = getattr(model, "base_model_prefix", "")
    children = dict(model.named_children())
    if not base or base not in children:
        return []
    return [name for name, child in children.items() if name != base and any(True for _ in child.parameters())]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes; the order of `tensors` does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _head(ours: Mapping[str, str], head: str) -> str | None:
    """The bare name of the head's module, which may be given with or without what wrappers put in front."""
    if not head:  # '' is the model itself; excusing all of it would load nothing without a word
        return None
    modules = {prefix[:-1] for bare in ours for prefix in _prefixes(bare)}
    wrapped = (bare.removesuffix(name[len(head):]) for bare, name in ours.items() if name.startswith(f"{head}."))
    found = head if head in modules else next(wrapped, None)
    if found is None:
        raise unknown("module with weights (as head)", head, modules)
    return found


def _tied_to_present(ours: Mapping[str, str], state: Mapping[str, Tensor], theirs: Collection[str]) -> set[str]:
    """Absent names whose weight is also known by a name that is present (safetensors stores tied weights once)."""
    present = {id(state[ours[k]]) for k in ours if k in theirs}
    return {k for k in ours if k not in theirs and id(state[ours[k]]) in present}


def _check_tied(ours: Mapping[str, str], state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    first: dict[int, str] = {}
    for name in (k for k in ours if k in theirs):
        other = first.setdefault(id(state[ours[name]]), name)
        if name != other and not torch.equal(theirs[name], theirs[other]):
            raise InputError(f"{other} and {name} are one weight in the model but differ in the checkpoint; "
                             "build the model without tying them, or read a checkpoint of the tied model")


def _check_floating(ours: Mapping[str, str], state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    other = [k for k in ours if k in theirs and state[ours[k]].is_floating_point() > theirs[k].is_floating_point()]
    if other:
        raise InputError(f"{len(other)} weights of the checkpoint are of type {theirs[other[0]].dtype} "
                         f"({_some(other)}) and the model's are floating-point numbers; give a checkpoint that is not "
                         "quantised, in float32, float16 or bfloat16")


def _sentence(missing: set[str], unexpected: set[str], misshaped: set[str], ours: Mapping[str, str],
              state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({_some(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    if misshaped:
        shapes = [f"{k}: {list(theirs[k].shape)} came, the model has {list(state[ours[k]].shape)}"
                  for k in sorted(misshaped)]
        found.append(f"{len(misshaped)} of another shape ({_some(shapes, '; ')})")
    return f"the checkpoint does not fit the model: {', '.join(found)}; {_remedy(missing, unexpected, misshaped)}"


def _some(names: Collection[str], separator: str = ", ") -> str:
    names = sorted(names)
    return separator.join(names[:SHOWN]) + (f"{separator}…" if len(names) > SHOWN else "")


def _remedy(missing: set[str], unexpected: set[str], misshaped: set[str]) -> str:
    """What to do about the most telling reason."""
    if prefix := _prefix_between(unexpected, missing):
        return f"its names carry the prefix {prefix!r} and the model's do not: rename them without it"
    if prefix := _prefix_between(missing, unexpected):
        return f"the model's names carry the prefix {prefix!r} and its own do not: rename them with it"
    if len(unexpected) == 1:
        (came,) = unexpected
        if near := difflib.get_close_matches(came, missing, n=1):
            return f"{came} should perhaps be called {near[0]}: rename it"
    modules = {k.rpartition(".")[0] for k in misshaped}
    if len(modules) == 1 and "" not in modules and not missing and not unexpected:
        return f"build the model with the same sizes, or name {modules.pop()!r} as the head where only the head differs"
    return "build the same architecture, with the same sizes, that the checkpoint was saved from"


def _prefix_between(longer: Collection[str], shorter: Collection[str]) -> str | None:
    """The prefix that turns most of the names in `shorter` into names in `longer`."""
    count = Counter(p for name in longer for p in _prefixes(name) if name.removeprefix(p) in shorter)
    return count.most_common(1)[0][0] if count else None


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a.`, `a.b.`"""
    parts = name.split(".")
    return [".".join(parts[:i]) + "." for i in range(1, len(parts))]
