"""ps: what runs, as an operating system would list it: trainings, deployments, everything that is a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llmos_cli.core.listing import read_text
from llmos_cli.core.records import RunRecord
from llmos_cli.core.view import Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.log import aligned
from llmos_cli.operations.summary import age

ADDRESS = "deployment.json"
"""In a deployment's run folder: its name, URL, process and checkpoint."""


@dataclass(frozen=True)
class Process:
    """`started` and `ended` in seconds since the epoch; `url` of a deployment; `checkpoint` that it serves or made."""

    run: str
    name: str
    operation: str
    status: str
    pid: int
    started: float
    ended: float | None
    url: str
    checkpoint: str
    doing: str


@dataclass(frozen=True)
class PsResult:
    processes: tuple[Process, ...]
    all: bool

    def view(self) -> View:
        if not self.processes:
            return "no runs yet" if self.all else "nothing is running; `llmos ps --all` lists every run"
        return Lines(
            aligned([["name", "operation", "status", "since", "checkpoint", "doing"], *map(_row, self.processes)])
        )


def _row(each: Process) -> list[str | Span]:
    """No table, which would fold ids where a terminal is narrow: nobody could copy them."""
    name, checkpoint = Span(each.name or each.run, "id"), Span(each.checkpoint[:12], "id")
    return [name, each.operation, each.status, age(each.started), checkpoint, each.doing]


def ps(ws: Workspace, *, all: bool = False) -> PsResult:
    records = ws.runs.list() if all else ws.runs.alive()
    return PsResult(tuple(process(record) for record in records), all)


def process(record: RunRecord) -> Process:
    address = address_of(record) or {}
    return Process(
        record.id,
        record.name,
        record.operation,
        record.status,
        record.pid,
        record.started,
        record.ended,
        address.get("url", "") if record.alive else "",
        address.get("checkpoint") or record.checkpoint,
        doing(record, address),
    )


def doing(record: RunRecord, address: dict[str, Any]) -> str:
    if not record.alive:
        return record.message
    if address:
        return str(address["url"])
    step, total = record.progress.get("step", 0), record.progress.get("total", 0)
    if not record.progress:
        return ""
    return f"{record.progress.get('stage', '')} {step}" + (f"/{total}" if total else "")


def address_of(record: RunRecord) -> dict[str, Any] | None:
    """Where a deployment answers; None for other runs, and until it has bound its port."""
    try:
        address: dict[str, Any] = json.loads(read_text(record.path / ADDRESS))
    except FileNotFoundError:
        return None
    return address
