"""What operations say while they work: runs write events to `events.jsonl`, the terminal shows them.

An operation takes `emit: Emit` and calls it; it never prints. Every event is a frozen dataclass whose fields
are plain JSON values, so that the file and the screen cannot drift apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """`at` is seconds since the epoch."""

    at: float = field(default_factory=time.time, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        return {"event": type(self).__name__.lower(), **asdict(self)}


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `Emit` for callers that do not want to hear."""


@dataclass(frozen=True)
class Started(Event):
    """A run began, or was resumed, in process `pid`, itself started at `pid_started` (so that a reused pid is not mistaken
    for it). `base` is the branch (or the detached id) that was current, `base_checkpoint` what it pointed at; `parents`
    are the checkpoints in use while the run lives; `name` is what users call it (a deployment's name)."""

    run: str
    operation: str
    pid: int
    pid_started: float
    host: str
    base: str
    argv: tuple[str, ...] = ()
    base_checkpoint: str = ""
    parents: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Kept(Event):
    """What the run was given or wrote, and has in its folder: `config.yaml`, `configs/NAME` or `evaluation.json` -> `sha256` and
    `size` (bytes); None for what was given up."""

    files: Mapping[str, Mapping[str, Any] | None]


@dataclass(frozen=True)
class Resumed(Event):
    """A run goes on from `step` with other settings: config key -> (before, now)."""

    step: int
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def told(self) -> str:
        changes = (f"{key} {now} (was {before})" for key, (before, now) in sorted(self.settings.items()))
        return f"from step {self.step} on: {', '.join(changes)}"


@dataclass(frozen=True)
class Progress(Event):
    """`step` of `total` (0 when unknown) `unit`s of `stage`; `rate` in `rate_unit` per second, `eta` and `elapsed` in seconds, `memory` in bytes."""

    stage: str
    step: int
    total: int = 0
    unit: str = "step"
    values: Mapping[str, float] = field(default_factory=dict)
    rate: float = 0.0
    rate_unit: str = ""
    elapsed: float = 0.0
    eta: float | None = None
    memory: int = 0


@dataclass(frozen=True)
class Metric(Event):
    """One measured number: `split` says on which data, `samples` (the SHA-256 of its rows, "" where that is not known) which of it that
    was then, `step` when in the run, `checkpoint` (an id) of what."""

    name: str
    value: float
    split: str = ""
    step: int | None = None
    checkpoint: str = ""
    low: float | None = None
    high: float | None = None
    samples: str = ""

    def comparable(self, other: Metric) -> bool:
        """Whether nothing says that the two were measured on different samples."""
        return self.samples == other.samples or not (self.samples and other.samples)


@dataclass(frozen=True)
class Layer(Event):
    """What a compressing method did to one layer; `skipped` holds the reason where it left it alone."""

    name: str
    values: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True)
class Note(Event):
    """Something the user should know; `level` is `info` or `warning`."""

    message: str
    level: str = "info"


_MANY = 3
"""Warnings of one kind, at most."""


def warn(emit: Emit, messages: Sequence[str]) -> None:
    """Each of the first few, and how many more there are: whoever needs those asks `fsck`."""
    for message in messages[:_MANY]:
        emit(Note(message, "warning"))
    if more := len(messages[_MANY:]):
        emit(Note(f"so {'are' if more > 1 else 'is'} {more} more: `llmos fsck` lists them", "warning"))


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint was committed; `moved` is the branch that now points at it, empty when none moved. `size`: bytes of its
    files; `stored`: those that were new on this disk."""

    checkpoint: str
    moved: str = ""
    size: int = 0
    stored: int = 0


@dataclass(frozen=True)
class Proven(Event):
    """How a compression's result was proven: in a `sentence`, and whole: `told` is the frozen dataclass that `--json` prints."""

    checkpoint: str
    sentence: str
    told: Any


@dataclass(frozen=True)
class Ended(Event):
    """`status`: done, failed, interrupted, terminated; `message` is the error's sentence."""

    status: str
    exit_code: int = 0
    message: str = ""
