"""Time measured in turns: passes of several models one after the other, again and again, so that what else the machine does hits
all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from llmos_cli import device

WARM, LEAST, MOST = 2, 5, 200
"""Turns before the clock counts, and the bounds on those that count."""
SECONDS = 0.5
"""Budget of the turns, for each model; also of those before the clock counts."""
FEW, PATIENCE = 2, 4
"""Turns that are enough of passes so long that they take this many budgets."""

Pass = Callable[[], object]


def durations(passes: Sequence[Sequence[Pass]], on: torch.device) -> list[list[float]]:
    """Seconds that each model's passes took, a number a turn: in turn n the n-th pass of every model, from the first again past
    the last. Which model begins changes from turn to turn, for the first to run may find the machine cooler."""
    taken: list[list[float]] = [[] for _ in passes]
    with torch.inference_mode():
        _warm(passes, on)
        while not _enough(taken):
            turn = len(taken[0])
            order = range(len(passes)) if turn % 2 == 0 else reversed(range(len(passes)))
            for model in order:
                taken[model].append(_timed(passes[model][turn % len(passes[model])], on))
    return taken


def _warm(passes: Sequence[Sequence[Pass]], on: torch.device) -> None:
    spent = 0.0
    for turn in range(WARM):
        if spent < SECONDS * len(passes):
            spent += sum(_timed(each[turn % len(each)], on) for each in passes)


def _enough(taken: Sequence[Sequence[float]]) -> bool:
    turns, seconds = len(taken[0]), sum(map(sum, taken))
    budget = SECONDS * len(taken)
    if turns < LEAST:
        return turns >= FEW and seconds >= PATIENCE * budget
    return turns >= MOST or seconds >= budget


def _timed(one: Pass, on: torch.device) -> float:
    device.synchronize(on)
    start = time.perf_counter()
    one()
    device.synchronize(on)
    return time.perf_counter() - start


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a `share` of `values` lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
