"""Which validation is the best one, and what it looks at."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from llmos_cli.operations.training.budget import Budget
from llmos_cli.operations.training.validation import Best, Sample, due
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks import load as task_called
from llmos_cli.tasks.base import Batch


@pytest.mark.parametrize(
    ("task", "values", "step", "behind"),
    [
        ("causal-lm", [3.0, 2.0, 2.5, 2.1], 2, 2),
        ("image-classification", [0.5, 0.7, 0.6], 2, 1),
        ("image-classification", [0.5, 0.5, 0.5], 3, 2),
    ],
)
def test_the_best_by_the_task_s_own_measure(task: str, values: list[float], step: int, behind: int) -> None:
    model, best = nn.Linear(1, 1), Best()
    for at, value in enumerate(values, 1):
        nn.init.constant_(model.weight, float(at))
        best.consider(value, at, lower_is_better=task_called(task).lower_is_better, model=model, keep=True)
    assert (best.step, best.behind) == (step, behind)
    assert best.weights is not None and best.weights["weight"].item() == step


def test_weights_are_copied_only_to_be_kept() -> None:
    best = Best()
    best.consider(1.0, 1, lower_is_better=True, model=nn.Linear(1, 1), keep=False)
    assert (best.value, best.weights) == (1.0, None)


def test_it_is_due_at_each_tenth_or_every_so_many_steps_and_at_the_end() -> None:
    def steps(options: TrainOptions) -> list[int]:
        run, found = Budget(25, None), []
        while run.progress < 1:
            run.advance()
            if due(options, run, len(found)):
                found.append(run.step)
        return found

    assert steps(TrainOptions()) == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert steps(TrainOptions(eval_every=10)) == [10, 20, 25]


def test_a_sample_is_spread_evenly_and_always_the_same() -> None:
    class Numbered:
        def __len__(self) -> int:
            return 100

        def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
            return {"labels": torch.tensor(rows)}

        def bytes(self, rows: Sequence[int]) -> int:
            return sum(rows)

    sample = Sample(Numbered(), 4)
    assert len(sample) == 4
    assert sample.batch(range(4))["labels"].tolist() == [0, 25, 50, 75]
    assert sample.bytes([1, 3]) == 100
    assert len(Sample(Numbered(), 1000)) == 100
