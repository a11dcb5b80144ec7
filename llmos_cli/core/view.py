"""What a result looks like, without saying how it is printed: lines, tables and groups of them.

A result's `view()` returns one of these; `ui.py` renders it, in colour on a terminal and as plain aligned text elsewhere.
A line is a string, or a sequence of strings and `Span`s where a part of it means something.

    Group([Lines([(Span("3f2a91c0", "id"), " wanda 50 %")]), Table(["layer", "bits"], [["0.q_proj", 4]], align="lr")])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["id", "name", "good", "bad", "warn", "dim", "bold"]


@dataclass(frozen=True)
class Span:
    """Text with a meaning: `id` of a checkpoint or run, `name` of a ref, `good`/`bad` news, `dim` asides, `bold` headings."""

    text: str
    style: Style

    def __str__(self) -> str:
        return self.text


Line = str | Span | Sequence[str | Span]
Cell = str | int | float | None | Span
"""None is shown as an em dash; floats with four significant digits: format them yourself to have it otherwise."""


@dataclass(frozen=True)
class Lines:
    lines: Sequence[Line]


@dataclass(frozen=True)
class Table:
    """`align` has one letter a column, `l` or `r`; columns without a letter are right-aligned when all their cells are numbers."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str = ""
    title: str = ""


@dataclass(frozen=True)
class Group:
    """Parts under one another, a blank line between them; empty parts leave no trace."""

    parts: Sequence[View]


View = str | Lines | Table | Group


def size(count: float) -> str:
    """Bytes for people: `size(1_500_000)` is `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people: `duration(75)` is `1m15s`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def short(identifier: str) -> str:
    """The first 12 digits of a checkpoint's id, as shown everywhere."""
    return identifier[:12]


def apart(identifier: str, others: Iterable[str]) -> str:
    """As `short`, and as many digits more as tell it from the `others`: two that are cut alike would be said to differ from themselves."""
    rest, length = [other for other in others if other != identifier], len(short(identifier))
    while length < len(identifier) and any(other.startswith(identifier[:length]) for other in rest):
        length += 1
    return identifier[:length]


def number(value: float) -> str:
    """Four significant digits: `number(1.88612)` is `1.886`, `number(64.0)` is `64`."""
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"
