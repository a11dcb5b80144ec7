"""Validation while training: when it is due, which run of weights is the best, and when patience is over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmos_cli.operations.training.budget import Budget
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Batch, Split

IN_A_RUN = 10


@dataclass
class Best:
    """The best validation so far: its number, its step, how many have come since, and (for `keep: best`) its weights."""

    value: float | None = None
    step: int = 0
    behind: int = 0
    weights: dict[str, Tensor] | None = None

    def consider(self, value: float, step: int, *, lower_is_better: bool, model: nn.Module, keep: bool) -> None:
        """Of equal ones the later is kept, which has trained longer (accuracy often stands still for a while), but it is no
        improvement to be patient for."""
        sign = 1 if lower_is_better else -1
        better = math.isfinite(value) and (self.value is None or sign * value < sign * self.value)
        self.behind = 0 if better else self.behind + 1
        if better or value == self.value:
            self.value, self.step = value, step
            self.weights = copied(model) if keep else None


def due(options: TrainOptions, budget: Budget, done: int) -> bool:
    """Every `eval_every` steps, else at each tenth of the run; always at its end."""
    if budget.progress >= 1:
        return True
    if options.eval_every:
        return budget.step % options.eval_every == 0
    return tenths(budget) > done


def tenths(budget: Budget) -> int:
    return int(budget.progress * IN_A_RUN)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now, in main memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


class Sample:
    """At most `most` rows of a split, evenly spread: the same ones at every validation."""

    def __init__(self, split: Split, most: int) -> None:
        self._split = split
        count = min(most, len(split))
        self._rows = [row * len(split) // count for row in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        return self._split.batch([self._rows[row] for row in rows], augment_seed=augment_seed)

    def bytes(self, rows: Sequence[int]) -> int:
        return self._split.bytes([self._rows[row] for row in rows])
