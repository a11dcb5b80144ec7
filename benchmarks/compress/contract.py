"""What a cell's process is told and what it answers, by two JSON files in its folder; standard library only.

A cell is one compression in a process of its own. `order.json` says of what, on which tokens and how; the process leaves a model
directory and `report.json`, which names it and holds what each phase took.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """`parent`: a plain model directory; `tokens`: int64 [S, L] of calibration (`.npy`); `options`: the cell's own, among them its
    `seed`; `folder`: the cell's, where the result goes."""

    parent: Path
    tokens: Path
    options: Mapping[str, Any]
    folder: Path


@dataclass
class Phases:
    """Seconds of each phase: of the wall, and of this process's CPU."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.add(name, time.monotonic() - wall, time.process_time() - cpu)

    def add(self, name: str, seconds: float, cpu_seconds: float) -> None:
        self.seconds[name], self.cpu_seconds[name] = seconds, cpu_seconds


def order() -> Order:
    """Of this process: its only argument is its folder."""
    folder = Path(sys.argv[1])
    told = json.loads((folder / "order.json").read_text())
    return Order(Path(told["parent"]), Path(told["tokens"]), told["options"], folder)


def report(asked: Order, model: Path, phases: Phases, distributions: Sequence[str], **facts: Any) -> None:
    """`model`: the directory that is judged; `distributions`: whose versions made it."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", *distributions)}
    said = {
        "model": str(model),
        "versions": {"python": platform.python_version(), **versions},
        **asdict(phases),
        **facts,
    }
    (asked.folder / "report.json").write_text(json.dumps(said, indent=1))
