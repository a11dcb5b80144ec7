"""show: everything that is known of a checkpoint: how it was made, from what, with which numbers and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.core.view import Group, Line, Lines, Span, Table, View, number, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.summary import Summary, age, shown_id, summarize


@dataclass(frozen=True)
class Number:
    """A measured value, with its interval where one was computed."""

    name: str
    split: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ShowResult:
    """`stored`: bytes that were new on this disk when it was committed, None when the run is gone; `runs` made it."""

    checkpoint: Summary
    runs: tuple[str, ...]
    stored: int | None
    metrics: tuple[Number, ...]
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    seed: int
    files: Mapping[str, FileEntry]
    proof: str = ""
    """How a compression was proven; its run has all of it, in the event `proven`."""

    def view(self) -> View:
        return Group(
            [
                Lines(list(self._facts())),
                Table(
                    ["metric", "split", "value", "95 % interval"], [_row(each) for each in self.metrics], align="llrl"
                )
                if self.metrics
                else Lines([]),
                *(_section(title, values) for title, values in self._sections().items() if values),
                Table(
                    ["file", "size", "SHA-256"],
                    [[name, size(e.size), e.sha256[:16]] for name, e in self.files.items()],
                    align="lrl",
                ),
            ]
        )

    def _facts(self) -> Iterator[Line]:
        checkpoint = self.checkpoint
        yield ["checkpoint ", Span(checkpoint.id, "id")]
        if checkpoint.names:
            yield ["names      ", Span(", ".join(checkpoint.names), "name")]
        yield f"made by    {checkpoint.made_by}, seed {self.seed}, {checkpoint.time} ({age(checkpoint.time)})"
        for parent in checkpoint.parents:
            yield ["parent     ", shown_id(parent)]
        if teacher := (self.config.get("train") or {}).get("teacher"):
            yield ["teacher    ", shown_id(teacher)]
        if self.runs:
            yield f"run        {', '.join(self.runs)}"
        if self.proof:
            yield f"proof      {self.proof}"
        new = f", {size(self.stored)} newly stored" if self.stored is not None else ""
        removed = " (its weights were given up: they are lost)" if checkpoint.lost else " (its weights were removed)"
        closed = {checkpoint.removed: removed, checkpoint.sealed: " (sealed)"}.get(True, "")
        yield f"size       {size(checkpoint.size)}{new}{closed}"

    def _sections(self) -> dict[str, Mapping[str, Any]]:
        return {"config": self.config, "data": self.data, "environment": self.environment}


def show(ws: Workspace, rev: str = "HEAD") -> ShowResult:
    with ws.index.still():
        return _shown(ws, ws.manifest(ws.resolve(rev)))


def _shown(ws: Workspace, found: Manifest) -> ShowResult:
    ws.runs.tell_gone({found.id})
    makers = ws.index.makers(found.id)
    measured = sorted(ws.metrics(found.id).values(), key=lambda metric: (metric.split, metric.name))
    return ShowResult(
        summarize(ws, found.id),
        tuple(run for run, _ in makers),
        makers[0][1] if makers else None,
        tuple(Number(m.name, m.split, m.value, m.low, m.high) for m in measured),
        found.made.config,
        found.made.data,
        found.made.environment,
        found.made.seed,
        found.tree,
        _proof(ws, found.id, [run for run, _ in makers]) if any(m.name == "parity" for m in measured) else "",
    )


def _proof(ws: Workspace, checkpoint: str, makers: Sequence[str]) -> str:
    """As the last of the runs that made it says."""
    events = (event for run in makers for event in read_events(ws.root / "runs" / run / EVENTS)[0])
    told = [event for event in events if event["event"] == "proven" and event["checkpoint"] == checkpoint]
    return told[-1]["sentence"] if told else ""


def _row(metric: Number) -> list[str]:
    between = (
        f"{number(metric.low)} to {number(metric.high)}" if metric.low is not None and metric.high is not None else ""
    )
    return [metric.name, metric.split, number(metric.value), between]


def _section(title: str, values: Mapping[str, Any]) -> Lines:
    return Lines([Span(title, "bold"), *(f"  {key}: {value}" for key, value in _flat(values, ""))])


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """`train.max_steps: 5`: as `-s` takes it; what was not set is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + str(key), value
