"""log --metric: how one metric moved along the line of a checkpoint, with the line as a picture of one row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from llmos_cli.catalog import did_you_mean
from llmos_cli.core.index import Entry
from llmos_cli.core.view import Group, Lines, Span, View, number
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound
from llmos_cli.events import Metric
from llmos_cli.operations.log import aligned, listed
from llmos_cli.operations.summary import SPLITS, shown_id

BARS = "▁▂▃▄▅▆▇█"
GAP = "·"


@dataclass(frozen=True)
class Point:
    """A checkpoint's measurement, None where it has none; `change` from the nearest measured ancestor by first parents, as a share
    of that one's value, where both are of the same samples; `other_samples`: of others than what was measured last."""

    checkpoint: str
    made_by: str
    names: tuple[str, ...]
    value: float | None
    low: float | None = None
    high: float | None = None
    change: float | None = None
    other_samples: bool = False


@dataclass(frozen=True)
class LogMetric:
    """`points` newest first, as `log` lists them; `line` draws their values from the oldest to the newest, but for those on other
    samples than what was measured last."""

    metric: str
    split: str
    points: tuple[Point, ...]
    line: str
    more: bool

    def view(self) -> View:
        rows = [_row(point) for point in self.points]
        on = f"{self.metric} on the {self.split} split" if self.split else self.metric
        return Group([Lines(aligned(rows)), Lines([f"{on}, oldest to newest: {self.line}", *self._others()])])

    def _others(self) -> list[Span]:
        count = sum(point.other_samples for point in self.points)
        what = "a value on other samples is" if count == 1 else f"{count} values on other samples are"
        told = f"{what} left out: `llmos eval` measures again, on those of the last"
        return [Span(told, "warn")] if count else []


def course(
    ws: Workspace,
    metric: str,
    rev: str | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    everything: bool = False,
) -> LogMetric:
    """Of the ancestors of `rev`, or of every checkpoint; NotFound where none of them has the metric (on that split)."""
    with ws.index.still():
        found = listed(ws, rev, limit=limit, everything=everything)
        shown = found[:limit]
        ws.runs.tell_gone({entry.id for entry in shown})
        measured = {entry.id: ws.metrics(entry.id) for entry in shown}
        chosen = _split(measured.values(), metric, split)
        names = ws.refs.pointing()
        last = max((each[metric, chosen] for each in measured.values() if (metric, chosen) in each), key=_when)
        points = tuple(
            _point(ws, entry, measured[entry.id].get((metric, chosen)), last, tuple(names.get(entry.id, ())))
            for entry in shown
        )
    line = sparkline([None if point.other_samples else point.value for point in reversed(points)])
    return LogMetric(metric, chosen, points, line, len(found) > len(shown))


def _split(measured: Iterable[Mapping[tuple[str, str], Metric]], metric: str, asked: str | None) -> str:
    """One split for all: numbers on different data are no line."""
    known = {key for each in measured for key in each}
    splits = [split for name, split in known if name == metric]
    if not splits:
        names = sorted({name for name, _ in known})
        hint = did_you_mean(metric, names) if names else "nothing is measured yet: `llmos eval` does"
        raise NotFound(f"no checkpoint of this line has a measured {metric}", hint=hint)
    if asked is not None and asked not in splits:
        raise NotFound(f"{metric} was not measured on the {asked} split", hint=f"it was on {', '.join(sorted(splits))}")
    return asked if asked is not None else min(splits, key=_place)


def _place(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _when(metric: Metric) -> float:
    return metric.at


def _point(ws: Workspace, entry: Entry, found: Metric | None, last: Metric, names: tuple[str, ...]) -> Point:
    """`last`: what was measured last of all, on the samples that count."""
    made_by = f"{entry.operation} {entry.label}".strip()
    if found is None:
        return Point(entry.id, made_by, names, None)
    before = _before(ws, entry, last)
    change = found.value / before.value - 1 if before and before.value and found.comparable(before) else None
    others = not found.comparable(last)
    return Point(entry.id, made_by, names, found.value, found.low, found.high, change, others)


def _before(ws: Workspace, entry: Entry, last: Metric) -> Metric | None:
    """What the nearest ancestor that was measured has."""
    at: Entry | None = entry
    while at is not None and at.parents:
        parent = at.parents[0]
        if (found := ws.metrics(parent).get((last.name, last.split))) is not None:
            return found
        at = ws.index.entry(parent)
    return None


def sparkline(values: Sequence[float | None]) -> str:
    """A bar for each value, from the lowest to the highest of them; a dot where there is none (or none that is finite)."""
    there = [value for value in values if _finite(value)]
    low, high = (min(there), max(there)) if there else (0.0, 0.0)
    return "".join(_bar(value, low, high) if _finite(value) else GAP for value in values)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and abs(value) < float("inf")


def _bar(value: float, low: float, high: float) -> str:
    # Halved first: the difference of two large numbers may not be finite.
    spread = high / 2 - low / 2
    share = (value / 2 - low / 2) / spread if spread else 0.5
    return BARS[min(int(share * len(BARS)), len(BARS) - 1)]


def _row(point: Point) -> list[str | Span]:
    told = "—" if point.value is None else number(point.value)
    between = "" if point.low is None or point.high is None else f"[{number(point.low)}, {number(point.high)}]"
    change = "" if point.change is None else f"{100 * point.change:+.2f} %"
    how = Span("other samples", "warn") if point.other_samples else change
    names = Span(f"({', '.join(point.names)})", "name") if point.names else ""
    return [shown_id(point.checkpoint), point.made_by, told, between, how, names]
