"""logs: what a run wrote down, for people or as its events, once or as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos_cli.core.listing import plainly
from llmos_cli.core.records import EVENTS, RunRecord, read_events
from llmos_cli.core.view import View
from llmos_cli.core.workspace import Workspace

PAUSE = 0.2
"""Seconds between looks at a growing log."""


@dataclass(frozen=True)
class LogsResult:
    """`events` as the run emitted them; `text` the same for people."""

    run: str
    name: str
    status: str
    events: tuple[Mapping[str, Any], ...]
    text: str

    def view(self) -> View:
        return self.text


def logs(ws: Workspace, name: str, *, last: int | None = None) -> LogsResult:
    """The log of a run or deployment; only its `last` lines if given."""
    record = ws.runs.find(name)
    events, _ = read_events(record.path / EVENTS)
    text = "".join(tail(lines(record.path / "log.txt"), last))
    return LogsResult(record.id, record.name, record.status, tuple(tail(events, last)), text)


def follow(ws: Workspace, name: str, *, events: bool, last: int | None = None, say: Callable[[str], None]) -> None:
    """Say the log's lines (events: lines of JSON) and go on as it grows, until the run has ended."""
    record = ws.runs.find(name)
    path = record.path / (EVENTS if events else "log.txt")
    offset = 0
    for text in grown(ws, record):
        offset, new = read_from(path, offset)
        for line in tail(new, last) if last is not None else new:
            say(line)
        last = None
        if text:
            return


def grown(ws: Workspace, record: RunRecord) -> Iterator[bool]:
    """Once at a time: whether the run has ended. The look after its end is the last, so that nothing is missed."""
    while True:
        ended = not ws.runs.find(record.id).alive
        yield ended
        time.sleep(PAUSE)


def lines(path: Path) -> list[str]:
    return read_from(path, 0)[1]


def read_from(path: Path, offset: int) -> tuple[int, list[str]]:
    """Whole lines from a byte offset on, and the offset after them."""
    try:
        with open(path, "rb", opener=plainly) as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return offset, []
    whole = data[: data.rfind(b"\n") + 1]
    return offset + len(whole), whole.decode(errors="replace").splitlines(keepends=True)


def tail(items: list[Any], last: int | None) -> list[Any]:
    return items if last is None else items[max(0, len(items) - last) :]
