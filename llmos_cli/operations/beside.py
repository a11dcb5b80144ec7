"""A result judged beside its parent and its teachers: each model answers every sample once, and all numbers are of those answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmos_cli import device
from llmos_cli.events import Emit, ignore
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Batch, Outcome, Split, Task

Answers = Callable[[int, Batch], Mapping[Path, Tensor]]
"""The logits of every model, by its directory, for the batch of that number."""


@dataclass(frozen=True)
class Judged:
    """`before`: the parent by itself; `after`: the result, once for each teacher, with the column `kl` to it."""

    before: Outcome
    after: Mapping[Path, Outcome]


def judged(
    task: Task,
    split: Split,
    rows: Sequence[range],
    answers: Answers,
    *,
    result: Path,
    parent: Path,
    teachers: Sequence[Path],
    emit: Emit = ignore,
) -> Judged:
    """Every sample of `split`, in the batches `rows`."""
    before: list[dict[str, Tensor]] = []
    after: dict[Path, list[dict[str, Tensor]]] = {path: [] for path in teachers}
    started = time.monotonic()

    def judge(number: int, first: int) -> None:
        """A function, so that the logits of one batch are gone before the next one's come."""
        batch = device.move(split.batch(rows[number]), device.pick())
        logits = answers(number, batch)
        before.append(scoring.columns(task, batch, logits[parent], None, first))
        for teacher in teachers:
            after[teacher].append(scoring.columns(task, batch, logits[result], logits[teacher], first))

    for number, range_ in enumerate(rows):
        judge(number, range_.start)
        emit(scoring.progress("evaluate parent and result", range_.stop, len(split), time.monotonic() - started))
    return Judged(scoring.outcome(split, before), {path: scoring.outcome(split, kept) for path, kept in after.items()})
