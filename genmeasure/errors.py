"""The one exception that means: what came in cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message says what came, what was expected and what to do; the command line exits with 2."""


MANY = 20
"""Known names listed in a message at the most."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that does not exist, with the nearest existing name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    some = ", ".join(known[:MANY]) + (f" and {len(known) - MANY} more" if len(known) > MANY else "")
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {some}"
    return InputError(f"unknown {what} {name!r}; {hint}")
