"""Which samples each step sees: a pure function of the seed and the step, so that a resumed run goes on with the same ones."""

from __future__ import annotations

import functools

import numpy as np


class Order:
    """`rows` samples in a fresh permutation each epoch, cut into `size` at a time; a batch may span two epochs, so that
    all have one size."""

    def __init__(self, rows: int, *, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)

    def take(self, first: int, size: int) -> list[int]:
        """Samples number `first` to `first + size` of the endless sequence of epochs."""
        return [int(self._permutation(i // self.rows)[i % self.rows]) for i in range(first, first + size)]

    def _shuffled(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)
