"""Samplers: how the next trial's values are chosen. One file each, with its `Options` and `sampler(options, search)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """What every sampler is told of the search.

    `startup_trials` are drawn at random before the sampler models anything; `told` trials are in the study already; `grid`
    holds every value of each parameter, or None in the place of one that is a range without a step.
    """

    seed: int
    told: int
    startup_trials: int
    objectives: int
    grid: Mapping[str, Sequence[bool | int | float | str] | None]

    @property
    def draw(self) -> int:
        """A seed that a resumed search does not share with the trials before it."""
        return self.seed + self.told
