"""The learning rate over a run, as a share of its peak: a pure function of how much of the run is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from llmos_cli.options.verbs import TrainOptions

WARMUP = 0.02
ONE_CYCLE_WARMUP = 0.3
"""Smith and Topin 2017, arXiv:1708.07120."""


def factor(options: TrainOptions, progress: float) -> float:
    """The share of `learning_rate` to use at `progress` (0: first step, 1: over)."""
    rise = _rise(options)
    if progress < rise:
        return _rising(options, progress / rise)
    return SCHEDULES[options.schedule]((progress - rise) / (1 - rise))


def _rise(options: TrainOptions) -> float:
    usual = ONE_CYCLE_WARMUP if options.schedule == "one-cycle" else WARMUP
    return usual if options.warmup is None else options.warmup


def _rising(options: TrainOptions, share: float) -> float:
    """Straight up from nothing; one-cycle rises along a cosine from a 25th."""
    if options.schedule == "one-cycle":
        return 1 / 25 + (1 - 1 / 25) * (1 - _cosine(share))
    return share


def _cosine(rest: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def _step(rest: float) -> float:
    """A tenth at half of the run, a hundredth at three quarters."""
    return 1.0 if rest < 0.5 else 0.1 if rest < 0.75 else 0.01


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda rest: 1.0,
    "cosine": _cosine,
    "linear": lambda rest: 1 - min(rest, 1.0),
    "step": _step,
    "one-cycle": _cosine,
}
