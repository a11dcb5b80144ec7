"""Validation while training: when it is due, which run of weights is the best, and when patience is over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Metric
from llmos_cli.operations.training.budget import Budget
from llmos_cli.operations.training.precision import autocast
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Batch, Split, Task
from llmos_cli.tasks.scoring import evaluate

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


class Seen(NamedTuple):
    """Of one validation: the task's metric, the loss, and the KL to whom the model is judged by, None where nobody is."""

    value: float
    loss: float
    kl: float | None


class Validations:
    """Those of one run: how many there have been (`done`), the last one's loss, and the best. `split`: what they look at, None where
    there is none. `judge`: beside whom the best is chosen."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        split: Split | None,
        options: TrainOptions,
        *,
        facts: Mapping[str, Any],
        judge: nn.Module | None,
        emit: Emit,
    ) -> None:
        self.task, self.model, self.split, self.options = task, model, split, options
        self.facts, self.judge, self.emit = facts, judge, emit
        self.best, self.done, self.loss = Best(), 0, 0.0

    def due(self, budget: Budget) -> bool:
        return self.split is not None and due(self.options, budget, self.done)

    def look(self, budget: Budget) -> Seen:
        """What is seen may turn out not to be finite, and then it is not to be considered."""
        assert self.split is not None
        self.done = max(self.done + 1, tenths(budget))
        size, on = self.options.batch_size, next(self.model.parameters()).device
        with autocast(self.options, on):
            outcome = evaluate(self.task, self.model, self.split, batch_size=size, teacher=self.judge)
        metrics = self.task.metrics(outcome, self.facts)
        self.loss = metrics["loss"]
        kl = outcome.mean(outcome.extra["kl"]) if "kl" in outcome.extra else None
        return Seen(metrics[self.task.metric], metrics["loss"], kl)

    def consider(self, seen: Seen, step: int) -> None:
        """Say how good the weights are, and keep them where they are the best so far."""
        value, lower = seen.value, self.task.lower_is_better
        self.emit(Metric(self.task.metric, value, split="validation", step=step))
        if seen.kl is not None:
            value, lower = self._learnt(seen.kl, seen.loss), True
            self.emit(Metric("kl_teacher", seen.kl, split="validation", step=step))
        keep = self.options.keep == "best"
        self.best.consider(value, step, lower_is_better=lower, model=self.model, keep=keep)

    def _learnt(self, kl: float, loss: float) -> float:
        """The two as they are weighed in training."""
        return self.options.teacher_weight * kl + (1 - self.options.teacher_weight) * loss

    def out_of_patience(self) -> bool:
        return self.options.patience is not None and self.best.behind >= self.options.patience


def looked_at(split: Split | None, options: TrainOptions) -> Split | None:
    """What validation looks at; nothing where there is no validation data."""
    if split is not None and len(split):
        return Sample(split, options.eval_samples)
    if options.patience is not None:
        raise UsageError("train.patience needs validation data.", hint="Unset train.patience, or set data.splits.")
    return None


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
