"""How much of a run is over, by steps and by the clock, whichever is further."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from llmos_cli.errors import UsageError
from llmos_cli.options.verbs import TrainOptions


@dataclass
class Budget:
    """`steps` and `seconds` allowed (None: not bounded by it).

    `elapsed` counts over interruptions. `lead` is the time until the first step was done, and for compiling: the budget
    pays for it but the schedule does not run on meanwhile, or a compiler's half minute would swallow the warm-up.
    """

    steps: int | None
    seconds: float | None
    step: int = 0
    lead: float = 0.0
    _before: float = 0.0
    _resumed: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return self._before + time.monotonic() - self._resumed

    def restore(self, *, step: int, elapsed: float, lead: float) -> None:
        self.step, self._before, self.lead = step, elapsed, lead
        self._resumed = time.monotonic()

    def advance(self) -> None:
        self.step += 1
        if self.step == 1:
            self.lead = self.elapsed

    def set_aside(self, seconds: float) -> None:
        """Time that no step was made in, spent before the next one."""
        if self.step:
            self.lead += seconds

    @property
    def progress(self) -> float:
        """0 at the first step, 1 when the budget is spent."""
        by_steps = self.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_steps, self._by_clock()))

    @property
    def midway(self) -> float:
        """Progress in the middle of the step to come: neither the first step nor the last is made at a rate of zero."""
        if self.step == 0:
            return 0.5 / self.steps if self.steps else 0.0
        return min(1.0, self.progress * (1 + 0.5 / self.step))

    def _by_clock(self) -> float:
        if self.seconds is None or self.step == 0:
            return 0.0
        left = self.seconds - self.lead
        return (self.elapsed - self.lead) / left if left > 0 else 1.0

    @property
    def eta(self) -> float | None:
        """Seconds left at the present rate."""
        running = self.elapsed - self.lead
        return None if self.step < 2 or self.progress == 0 else max(0.0, running / self.progress - running)


def of(options: TrainOptions, *, samples: int) -> Budget:
    """The budget of a run over `samples` training samples; UsageError when nothing bounds it."""
    bounds = [options.max_steps, _steps_of_epochs(options, samples)]
    steps = min((bound for bound in bounds if bound is not None), default=None)
    if steps is None and options.max_seconds is None:
        raise UsageError(
            "Nothing says when training ends.", hint="Set train.max_steps, train.max_epochs or train.max_seconds."
        )
    return Budget(steps, options.max_seconds)


def cut_short(options: TrainOptions, *, samples: int) -> str:
    """What to say where `max_epochs` ends a run before the `max_steps` that were asked for; nothing where it does not."""
    steps = _steps_of_epochs(options, samples)
    if steps is None or options.max_steps is None or steps >= options.max_steps:
        return ""
    return (
        f"train.max_epochs={options.max_epochs:g} ends the run after {steps:,} of {options.max_steps:,} steps; "
        "`--unset train.max_epochs` lifts it"
    )


def _steps_of_epochs(options: TrainOptions, samples: int) -> int | None:
    if options.max_epochs is None:
        return None
    return max(1, math.ceil(options.max_epochs * samples / (options.batch_size * options.accumulation)))
