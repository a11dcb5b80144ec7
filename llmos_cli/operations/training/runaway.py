"""A loss that is no longer finite, or about to be: which state to come back to, and what to say of it."""

from __future__ import annotations

from pathlib import Path

from llmos_cli.errors import LlmosError
from llmos_cli.operations.training import divergence, state

RUNAWAY = 2.0
"""Times the first step's loss (or one nat) from which training is on its way to infinity."""


def runs_away(loss: float, *, first: float) -> bool:
    return not loss <= RUNAWAY * max(1.0, first)


def diverged(sentence: str, *, directory: Path | None, step: int, learning_rate: float, fixed: bool) -> LlmosError:
    """After `step` steps. `directory`: of the resume state, which is set back to a good one; `fixed`: resuming changes no option."""
    now = f"(now {learning_rate:g})"
    if directory is None or fixed:
        return LlmosError(sentence, hint=f"Start again with a lower learning rate {now}.", final=fixed)
    # The state saved last stays: these weights would give the same loss again, whatever the options are.
    good = state.go_back(directory, failed_after=step)
    divergence.note(directory, divergence.Divergence(step + 1, good))
    where = f"goes on from step {good}, the last good state" if good else "begins again"
    return LlmosError(sentence, hint=f"{divergence.WAY_ON} {where}, with a lower rate {now}.", final=fixed)
