"""How fast a run goes and how it does, told about once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from llmos_cli import device
from llmos_cli.events import Emit, Progress
from llmos_cli.operations.training.budget import Budget

EVERY_SECONDS = 1.0


@dataclass
class Meter:
    """Counts samples or tokens; `rate` is theirs per second of stepping, validation, saving and compiling left out."""

    emit: Emit
    stage: str
    unit: str
    on: torch.device
    fastest: float = float("inf")
    _losses: list[float] = field(default_factory=list)
    _seen: int = 0
    _seconds: float = 0.0
    _told: float = -float("inf")

    def add(self, seen: int, loss: float, seconds: float) -> None:
        self.fastest = min(self.fastest, seconds)
        self._losses.append(loss)
        self._seen += seen
        self._seconds += seconds

    def forget_speed(self) -> None:
        """Start measuring anew: after compiling, the steps before and the compiling itself say nothing of the rest."""
        self._seen, self._seconds = 0, 0.0

    @property
    def rate(self) -> float:
        return self._seen / self._seconds if self._seconds else 0.0

    def report(self, budget: Budget, *, learning_rate: float, gradient_norm: float, now: bool = False) -> None:
        """The mean loss since the last report, not the last step's, which jumps about."""
        if not self._losses or (not now and time.monotonic() - self._told < EVERY_SECONDS):
            return
        values = {
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
        }
        self.emit(
            Progress(
                self.stage,
                budget.step,
                budget.steps or 0,
                values=values,
                rate=self.rate,
                rate_unit=self.unit,
                elapsed=budget.elapsed,
                eta=budget.eta,
                memory=device.memory_used(self.on),
            )
        )
        self._losses, self._told = [], time.monotonic()
