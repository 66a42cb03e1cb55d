"""The settings that checkpoints were made with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class Grid:
    """names: of the hyper-parameters. codes: [n, p], the value of each as a whole number from 0."""

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, settings: pd.DataFrame) -> Grid:
        """From a frame with one row for each checkpoint and one column for each hyper-parameter."""
        codes = [pd.factorize(settings[name])[0] for name in settings]
        return cls(tuple(map(str, settings)), np.stack(codes, 1) if codes else np.empty((len(settings), 0), int))

    def chosen(self, mask: np.ndarray) -> Grid:
        return Grid(self.names, self.codes[mask])

    def cells(self, axes: Iterable[int]) -> np.ndarray:
        """[n] numbers from 0; checkpoints with the same values of these hyper-parameters have the same."""
        columns = self.codes[:, list(axes)]
        if not columns.shape[1]:
            return np.zeros(len(columns), int)
        return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)

    def others(self, axis: int) -> np.ndarray:
        """The cells in which this hyper-parameter alone varies (and the seed, where it is no axis)."""
        return self.cells(i for i in range(len(self.names)) if i != axis)

    def subsets(self, sizes: Iterable[int]) -> Iterator[tuple[int, ...]]:
        """Sets of so many hyper-parameters."""
        for size in sizes:
            yield from itertools.combinations(range(len(self.names)), size)

    def complete(self) -> bool:
        """Whether every combination of values occurs exactly once."""
        return (len(np.unique(self.codes, axis=0)) == len(self.codes)
                == int(np.prod([len(np.unique(column)) for column in self.codes.T])))


def one_hot(cells: np.ndarray) -> np.ndarray:
    """[n, k] of 0 and 1."""
    return np.eye(int(cells.max()) + 1)[cells]
