"""Quantities that several readings need: computed once, and what a reading costs by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

COUNTING = threading.Lock()


@dataclass
class Quantity:
    """A result, the passes over the data that it took beside the other quantities that it needs, and their keys."""

    value: Any = None
    passes: float = 0.0
    needs: set[str] = field(default_factory=set)


class Shared:
    """Results by key, and `passes`, the forward passes over the data that were spent or are charged so far.

    What is at hand is charged again, once in every reading that needs it, so that what a reading costs by itself does
    not depend on what was measured before it. programs: of the networks, by layers (`curvature.program`); they stay in
    this process.
    """

    def __init__(self) -> None:
        self.passes = 0.0
        self._known: dict[str, Quantity] = {}
        self._charged: set[str] = set()
        self._making: list[Quantity] = []
        self.programs: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "programs": {}}

    def new_reading(self) -> None:
        """From here on what is at hand is charged anew."""
        self._charged = set()

    def spend(self, passes: float) -> None:
        """Record work that was carried out."""
        with COUNTING:
            self.passes += passes
            if self._making:
                self._making[-1].passes += passes

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """`compute()` on the first call with `key`, its result afterwards."""
        if key in self._known:
            self._charge(key)
        else:
            made = Quantity()
            self._making.append(made)
            try:
                made.value = compute()
            finally:
                self._making.pop()
            self._known[key] = made
            self._charged.add(key)
        if self._making:  # what raised is at nobody's hand
            self._making[-1].needs.add(key)
        return self._known[key].value

    def _charge(self, key: str) -> None:
        if key not in self._charged:
            self._charged.add(key)
            self.passes += self._known[key].passes
            for other in self._known[key].needs:
                self._charge(other)
