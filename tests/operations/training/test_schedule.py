"""Schedules by their shape."""

from __future__ import annotations

import pytest

from llmos_cli.operations.training.schedule import factor
from llmos_cli.options.verbs import TrainOptions


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0.0: 0, 0.1: 0.5, 0.2: 1, 0.6: 1, 1.0: 1}),
        ("linear", {0.0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 1.0: 0}),
        ("cosine", {0.0: 0, 0.1: 0.5, 0.2: 1, 0.4: 0.8535534, 0.6: 0.5, 1.0: 0}),
        ("step", {0.0: 0, 0.2: 1, 0.5: 1, 0.61: 0.1, 0.79: 0.1, 0.81: 0.01, 1.0: 0.01}),
        ("one-cycle", {0.0: 0.04, 0.1: 0.52, 0.2: 1, 0.6: 0.5, 1.0: 0}),
    ],
)
def test_the_rate_over_a_run_that_warms_up_for_a_fifth(schedule: str, at: dict[float, float]) -> None:
    options = TrainOptions(schedule=schedule, warmup=0.2)  # type: ignore[arg-type]
    assert {progress: factor(options, progress) for progress in at} == pytest.approx(at)


def test_without_a_warm_up_it_starts_at_the_peak() -> None:
    assert factor(TrainOptions(schedule="linear", warmup=0.0), 0.0) == 1.0


def test_one_cycle_peaks_at_its_paper_s_place() -> None:
    options = TrainOptions(schedule="one-cycle")
    assert max(range(101), key=lambda percent: factor(options, percent / 100)) == 30
