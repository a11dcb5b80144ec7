"""Which samples each batch holds: a pure function of the seed and the batch's number, so that a resumed run goes on with the same ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GROUP = 16
"""Batches drawn together where samples differ in length: enough to find each sample others of its length."""


class Order:
    """Batches of `size` samples, endlessly, in a fresh permutation of all `rows` each epoch; a batch may span two epochs, so
    that all have one size.

    With `lengths`, one a sample, each run of `GROUP` batches is sorted by length, cut into batches and shuffled again: a
    batch pays for its longest sample.
    """

    def __init__(
        self, rows: int, *, size: int, seed: int, lengths: Sequence[int] | NDArray[np.int64] | None = None
    ) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._permutation = functools.lru_cache(maxsize=2)(self._shuffled)
        self._group = functools.lru_cache(maxsize=2)(self._sorted)

    def batch(self, number: int) -> list[int]:
        """The samples of batch `number`, from 0."""
        together = self.lengths is not None
        rows = self._group(number // GROUP)[number % GROUP] if together else self._take(number * self.size, self.size)
        return [int(row) for row in rows]

    def _sorted(self, group: int) -> NDArray[np.int64]:
        """The batches of a group, [GROUP, size]."""
        assert self.lengths is not None
        samples = self._take(group * GROUP * self.size, GROUP * self.size)
        by_length = samples[np.argsort(self.lengths[samples], kind="stable")].reshape(GROUP, self.size)
        return np.random.default_rng([self.seed, group, self.rows]).permutation(by_length)

    def _take(self, first: int, count: int) -> NDArray[np.int64]:
        """Samples number `first` to `first + count` of the endless sequence of epochs."""
        places = range(first, first + count)
        return np.array([self._permutation(i // self.rows)[i % self.rows] for i in places], np.int64)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)
