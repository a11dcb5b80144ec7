"""A checkpoint in one line: what made it, when, how big it is, and its main numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from llmos_cli.core.refs import Head
from llmos_cli.core.view import Span, number, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Metric

MAIN = ("bits_per_byte", "accuracy", "macro_f1", "entity_f1")
"""What each kind of task is judged by first, in the order of showing: two of them at most."""
SPLITS = ("test", "validation", "")
GONE = "its checkpoint is missing or cannot be read: `llmos fsck`"
"""What stands in its line, then."""
SHORT = 12
"""Digits of an id: enough for any workspace, and few enough for a line."""


@dataclass(frozen=True)
class Summary:
    """`time` is ISO 8601 in UTC, `size` the bytes of its files, `removed` whether its weights were removed, `sealed`
    whether they are encrypted, `lost` whether it was given up as lost for good, or its weights were."""

    id: str
    operation: str = "?"
    label: str = ""
    time: str = ""
    size: int = 0
    parents: tuple[str, ...] = ()
    removed: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    sealed: bool = False
    lost: bool = False

    @property
    def made_by(self) -> str:
        return f"{self.operation} {self.label}".strip()

    @property
    def told_size(self) -> str:
        return "lost" if self.lost else "removed" if self.removed else "sealed" if self.sealed else size(self.size)


def has_others(ws: Workspace, head: Head) -> bool:
    """Whether there are checkpoints, and none on HEAD's branch: it is new, or HEAD was edited."""
    return head.checkpoint is None and bool(ws.index.entries(1))


def summarize(ws: Workspace, checkpoint: str, names: Mapping[str, list[str]] | None = None) -> Summary:
    """From the index; one whose manifest cannot be read is all question marks. `names`: what `refs.pointing()` said."""
    entry = ws.index.entry(checkpoint)
    named = tuple((ws.refs.pointing() if names is None else names).get(checkpoint, ()))
    if entry is None:
        return Summary(checkpoint, names=named)
    closed = ws.closed(checkpoint)
    return Summary(
        entry.id,
        entry.operation,
        entry.label,
        entry.time,
        entry.size,
        entry.parents,
        closed == "removed",
        main_metrics(ws.metrics(checkpoint)),
        named,
        closed == "sealed",
        entry.is_lost or (closed == "removed" and checkpoint in ws.lost),
    )


def main_metrics(measured: Mapping[tuple[str, str], Metric]) -> dict[str, float]:
    """The numbers that the task is judged by, on the test split where they were measured there."""
    found = {name: _on_best_split(measured, name) for name in MAIN}
    told = {name: value for name, value in found.items() if value is not None}
    return dict(list(told.items())[:2])


def _on_best_split(measured: Mapping[tuple[str, str], Metric], name: str) -> float | None:
    for split in SPLITS:
        if (name, split) in measured:
            return measured[name, split].value
    return None


def told(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in metrics.items())


def shown_id(checkpoint: str) -> Span:
    return Span(checkpoint[:SHORT], "id")


def age(when: str | float, now: float | None = None) -> str:
    """`3 minutes ago`, of an ISO time in UTC or of seconds since the epoch; as it is when it is neither."""
    at = when if isinstance(when, float) else _epoch(when)
    if at is None:
        return str(when)
    seconds = max((time.time() if now is None else now) - at, 0)
    for unit, length in (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now" if seconds < 5 else f"{int(seconds)} seconds ago"


def _epoch(iso: str) -> float | None:
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
