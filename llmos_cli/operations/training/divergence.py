"""That a run stopped because its loss was no longer finite: a note beside its resume state, read without torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from llmos_cli.core import atomic

FILE = "diverged.json"
WAY_ON = "`llmos train --resume -s train.learning_rate=LOWER`"


@dataclass(frozen=True)
class Divergence:
    """`step`: the one that could not be done; `good`: the step of the state to go on from, 0 for the beginning."""

    step: int
    good: int


def note(directory: Path, divergence: Divergence) -> None:
    atomic.write_text(directory / FILE, json.dumps(asdict(divergence)) + "\n")


def noted(directory: Path) -> Divergence | None:
    file = directory / FILE
    return Divergence(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def forget(directory: Path) -> None:
    atomic.remove(directory / FILE)
