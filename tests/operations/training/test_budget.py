"""Budgets: in steps, epochs and seconds, over interruptions and compiling."""

from __future__ import annotations

import time

import pytest

from llmos_cli.operations.training import budget
from llmos_cli.operations.training.budget import Budget
from llmos_cli.options.verbs import TrainOptions


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"max_steps": 10}, 10),
        ({"max_epochs": 2.0, "batch_size": 10}, 20),
        ({"max_epochs": 0.5, "batch_size": 8, "accumulation": 4}, 2),
        ({"max_steps": 3, "max_epochs": 2.0, "batch_size": 10}, 3),
        ({"max_seconds": 5.0}, None),
    ],
)
def test_steps_of_a_run_over_a_hundred_samples(keys: dict[str, float], steps: int | None) -> None:
    assert budget.of(TrainOptions(**keys), samples=100).steps == steps  # type: ignore[arg-type]


def test_epochs_that_end_a_run_before_its_steps_are_said() -> None:
    epochs = TrainOptions(max_epochs=2.0, batch_size=10)
    assert budget.cut_short(epochs, samples=100) == ""
    assert budget.cut_short(epochs.model_copy(update={"max_steps": 20}), samples=100) == ""
    said = budget.cut_short(epochs.model_copy(update={"max_steps": 2000}), samples=100)
    assert said == "train.max_epochs=2 ends the run after 20 of 2,000 steps; `--unset train.max_epochs` lifts it"


def test_progress_is_that_of_the_budget_that_is_further() -> None:
    by_steps, by_clock = Budget(4, 1000.0), Budget(1000, 0.2)
    for run in (by_steps, by_clock):
        run.advance()
    assert by_steps.progress == pytest.approx(0.25, abs=0.01)
    time.sleep(0.1)
    assert 0.4 < by_clock.progress <= 1


def test_time_set_aside_for_compiling_does_not_move_the_schedule() -> None:
    run = Budget(None, 0.4)
    run.advance()
    time.sleep(0.2)
    run.set_aside(0.2)
    assert run.progress < 0.2
    assert run.elapsed >= 0.2


def test_a_resumed_run_goes_on_counting() -> None:
    run = Budget(10, 100.0)
    run.restore(step=5, elapsed=40.0, lead=20.0)
    assert run.progress == 0.5
    assert 40 <= run.elapsed < 41
    assert run.eta == pytest.approx(20.0, abs=1.0)


def test_no_step_is_made_at_a_rate_of_zero() -> None:
    run = Budget(4, None)
    seen = []
    for _ in range(4):
        seen.append(run.midway)
        run.advance()
    assert seen == [0.125, 0.375, 0.625, 0.875]
