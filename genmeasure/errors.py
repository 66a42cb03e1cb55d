"""The one exception that means: what came in cannot be used."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Bad input. The message says what came, what was expected and what to do; the command line exits with 2."""


class LostRank(RuntimeError):
    """Another rank of this run is gone or at another place of the program; this one cannot go on."""


MANY = 20
"""Known names listed in a message at the most."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that does not exist, with the nearest existing name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    some = ", ".join(known[:MANY]) + (f" and {len(known) - MANY} more" if len(known) > MANY else "")
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {some}"
    return InputError(f"unknown {what} {name!r}; {hint}")


_REWRITE = "write it out of elementary operations, or take noise-stability, which needs no derivative"
_OWN = "a torch.autograd.Function of the model's own"
LACKING = (  # what torch 2.13 says -> what is lacking, and what to do
    (r"derivative for '?(?:aten::)?(\w+)'? is not implemented", "{} has no second derivative", _REWRITE),
    (r"[Dd]ouble backwards? is not supported for (\w+)", "{} has no second derivative", _REWRITE),
    (r"differentiate twice a function that was marked with @?(once_differentiable)",
     f"{_OWN} is marked with {{}}, so it has no second derivative", _REWRITE),
    (r"forward AD with (\w+) that does not support it", "{} has no derivative in forward mode",
     f"{_REWRITE}, or route=hutchinson of hessian-trace, which only goes backward"),
    (r"must (?:override the|implement the) (setup_context|jvp)",
     f"{_OWN} has no {{}}, which derivatives in forward mode and of single examples need",
     "give it setup_context, jvp and generate_vmap_rule=True, or take route=hutchinson of hessian-trace"),
    (r"vmap over (\w+), but it does not have vmap support", "{} cannot be carried out for single examples at once",
     "set generate_vmap_rule=True in it, or take route=hutchinson of hessian-trace"),
    (r"element (0) of tensors does not require grad", "the loss has no derivative with respect to the weights",
     "choose a loss that is differentiable, or take noise-stability, which needs no derivative"),
)


@contextlib.contextmanager
def second_derivative() -> Iterator[None]:
    """Around computations that differentiate twice: what torch says of an operation that lacks this as `InputError`."""
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one
        for pattern, lack, remedy in LACKING:
            if found := re.search(pattern, str(error)):
                raise InputError(f"{lack.format(found[1])}; {remedy}") from error
        raise
