"""Whole commands in processes of their own, which take turns within one run; the best turn of each counts."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.synthetic import LLMOS

K = TypeVar("K")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "DVC_NO_ANALYTICS": "1",
    "EMAIL": "a@example.org",
    "OMP_NUM_THREADS": "1",
}
"""Compiled modules are kept, as where the tool is installed: compiling them each time would hide half of what grows."""


@dataclass(frozen=True)
class Seconds:
    cpu: float
    wall: float

    @classmethod
    def of_children(cls) -> Seconds:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(usage.ru_utime + usage.ru_stime, time.perf_counter())

    @classmethod
    def of_this(cls) -> Seconds:
        return cls(time.process_time(), time.perf_counter())

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)


@dataclass(frozen=True)
class Row:
    """`bar`: what the ratio of `ours` to `other` may be at most; None: nobody promised anything."""

    name: str
    ours: Seconds
    against: str
    other: Seconds
    bar: float | None = None
    wall: bool = False

    @property
    def ratio(self) -> float:
        return self.ours.wall / self.other.wall if self.wall else self.ours.cpu / self.other.cpu

    @property
    def missed(self) -> bool:
        return self.bar is not None and self.ratio > self.bar

    @property
    def line(self) -> str:
        cells = f"{self.name:34} {_told(self.ours)}   {self.against:34} {_told(self.other)}   {self.ratio:6.2f}x "
        kind = "wall" if self.wall else "CPU "
        return cells + kind + (f" (bar {self.bar:g}x)" if self.bar is not None else "") + "   MISSED" * self.missed


def _told(seconds: Seconds) -> str:
    return f"{seconds.cpu:7.3f} {seconds.wall:7.3f}"


@dataclass(frozen=True)
class Turn:
    command: Sequence[str | Path]
    folder: Path


def command(place: Path, *words: str) -> Turn:
    return Turn([LLMOS, *words], place)


def best(turns: Mapping[K, Turn], count: int) -> dict[K, Seconds]:
    for turn in turns.values():
        timed(turn)  # warm: the index is made, the pages are in memory
    taken: dict[K, list[Seconds]] = {name: [] for name in turns}
    for _ in range(count):
        for name, turn in turns.items():
            taken[name].append(timed(turn))
    return {name: least(each) for name, each in taken.items()}


def least(each: Sequence[Seconds]) -> Seconds:
    return Seconds(min(one.cpu for one in each), min(one.wall for one in each))


def timed(turn: Turn) -> Seconds:
    before = Seconds.of_children()
    do(turn.folder, *turn.command)
    return Seconds.of_children() - before


def do(folder: Path, *words: str | Path, given: bytes | None = None) -> str:
    """What it says on stdout."""
    ran = subprocess.run(words, cwd=folder, check=True, capture_output=True, env=ENVIRONMENT, input=given)
    return ran.stdout.decode()
