"""What is known of runs: the `events.jsonl` of each folded into one value.

Folding goes on from where it stopped, so that a growing file is read once.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core.listing import plainly
from llmos_cli.core.processes import Process
from llmos_cli.core.refs import ID, RUNS
from llmos_cli.core.view import short
from llmos_cli.errors import UNREADABLE, AmbiguousRevision, NotFound
from llmos_cli.events import warn

if TYPE_CHECKING:
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Workspace

EVENTS = "events.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """`status`: running, done, failed, interrupted, terminated, or died (its process is gone without a word).

    `started` (the first time) and `ended` are seconds since the epoch; `checkpoint` is the last one it committed, empty when none;
    `progress` the last Progress event.
    """

    id: str
    path: Path
    operation: str = ""
    status: str = "died"
    started: float = 0.0
    ended: float | None = None
    checkpoint: str = ""
    checkpoints: tuple[str, ...] = ()
    name: str = ""
    pid: int = 0
    pid_started: float = 0.0
    host: str = ""
    base: str = ""
    base_checkpoint: str = ""
    argv: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    exit_code: int = 0
    message: str = ""
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        return self.status == "running"

    def judged(self) -> RunRecord:
        """With `running` turned to `died` where the process is gone."""
        if self.status == "running" and not Process(self.pid, self.pid_started, self.host).alive():
            return replace(self, status="died")
        return self


class Runs:
    """All runs of a workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def resume(self, run: str, *, argv: Sequence[str] | None = None) -> AbstractContextManager[Run]:
        """Reopen a run that ended without a result. Conflict when it is still running, UsageError when it is done."""
        from llmos_cli.core import runs  # here: what only lists runs need not load what makes them

        return runs.resume(self._workspace, self.find(run), argv)

    def find(self, name: str) -> RunRecord:
        """By id, by the name of a deployment (the living or else the newest one), by a unique beginning of either, or by the
        digits that an id ends with."""
        by_id = {record.id: record for record in self.list()}
        by_name: dict[str, RunRecord] = {}
        for record in sorted(by_id.values(), key=lambda record: (record.alive, record.started)):
            if record.name:
                by_name[record.name] = record
        if name in by_id or name in by_name:
            return by_id.get(name) or by_name[name]
        return _by_prefix(name, by_id, by_name)

    def alive(self) -> Sequence[RunRecord]:
        return [record for record in self._workspace.index.open_records() if record.alive]

    def list(self) -> list[RunRecord]:
        """Oldest first."""
        return self._workspace.index.records()

    def tell_gone(self, checkpoints: Container[str]) -> None:
        """Of these checkpoints the runs that made them and are not here: what was measured is gone with a run."""
        ws = self._workspace
        gone = [(run, made) for run in self._gone() if (made := ws.refs.read(RUNS + run)) and made in checkpoints]
        lost = "is gone by no command, and what it measured with it; `llmos fsck` tells more"
        warn(ws.emit, [f"run {run}, which made {short(made)}, {lost}" for run, made in gone])

    def _gone(self) -> Sequence[str]:
        """None while a fetch is under way: it brings the refs of runs before the runs."""
        gone = self._workspace.index.gone_runs()
        if gone:
            from llmos_cli.core.remote.downloading import is_under_way  # here: runs are where they were, as a rule

            return [] if is_under_way(self._workspace.dot) else gone
        return gone


def _by_prefix(name: str, by_id: Mapping[str, RunRecord], by_name: Mapping[str, RunRecord]) -> RunRecord:
    found = {called: record for called, record in by_name.items() if called.startswith(name)}
    found |= {run: record for run, record in by_id.items() if run.startswith(name) or run.endswith(f"-{name}")}
    if len(found) > 1 and name:
        listed = ", ".join(list(found)[-8:])
        raise AmbiguousRevision(f"{name} could be any of {len(found)} runs: {listed}", hint="give more of its name")
    if not found or not name:
        raise NotFound(f"no run is called {name!r}", hint="`llmos ps --all` lists runs and deployments")
    return found.popitem()[1]


def fold(record: RunRecord, events: Iterable[Mapping[str, Any]]) -> RunRecord:
    changed: dict[str, Any] = {}
    checkpoints = list(record.checkpoints)
    for event in events:
        kind = event.get("event")
        if kind == "started":
            changed |= _started(event)
            changed["started"] = record.started or changed.get("started") or event["at"]
        elif kind == "progress":
            changed["progress"] = event
        elif kind == "saved":
            checkpoints.append(str(event["checkpoint"]))
        elif kind == "ended":
            changed |= {
                "status": event["status"],
                "ended": event["at"],
                "exit_code": event.get("exit_code", 0),
                "message": event.get("message", ""),
            }
    return replace(
        record,
        **changed,
        checkpoints=tuple(dict.fromkeys(checkpoints)),
        checkpoint=checkpoints[-1] if checkpoints else "",
    )


def _started(event: Mapping[str, Any]) -> dict[str, Any]:
    same = ("operation", "pid", "pid_started", "host", "base", "base_checkpoint", "name")
    return {
        "status": "running",
        "ended": None,
        "message": "",
        "exit_code": 0,
        "argv": tuple(event.get("argv", ())),
        "parents": tuple(event.get("parents", ())),
        **{key: event.get(key, "") for key in same},
    }


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events of a file from a byte offset on, and the offset after the last whole line; other lines are skipped."""
    try:
        with open(path, "rb", opener=plainly) as file:
            file.seek(offset)
            text = file.read()
    except FileNotFoundError:
        return [], 0
    whole = text[: text.rfind(b"\n") + 1]
    return list(_parsed(whole)), offset + len(whole)


def _parsed(text: bytes) -> Iterator[dict[str, Any]]:
    last_progress: bytes | None = None
    for line in text.split(b"\n"):
        # A long training writes little else than progress, and only its last counts.
        if line.startswith(b'{"event": "progress"'):
            last_progress = line
        elif (event := parse(line)) is not None:
            yield event
    if last_progress and (event := parse(last_progress)) is not None:
        yield event


_FIELDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "started": {"run": str, "operation": str, "pid": int, "pid_started": (int, float), "host": str, "base": str},
    "kept": {"files": dict},
    "saved": {"checkpoint": str},
    "metric": {"name": str, "value": (int, float, type(None))},
    "progress": {"stage": str, "step": int},
    "proven": {"checkpoint": str, "sentence": str, "told": dict},
    "ended": {"status": str},
}
_TEXTS = ("name", "base", "base_checkpoint", "message", "split", "checkpoint", "operation", "host")
_LISTS = ("argv", "parents")


def parse(line: bytes) -> dict[str, Any] | None:
    """None where it is no event: half of one, or one that no llmos wrote."""
    try:
        event: dict[str, Any] = json.loads(line)
        return event if _sound(event) else None
    except UNREADABLE:
        return None


def _sound(event: Any) -> bool:
    """What decides what a run is has the types that the index keeps."""
    wanted = _FIELDS.get(event["event"], {})
    lists = [event.get(name, []) for name in _LISTS]
    for name in _TEXTS:
        event.get(name, "").encode()  # a text, and no half of a character
    return (
        _is(event["at"], (int, float))
        and all(_is(event[name], kind) for name, kind in wanted.items())
        and (event["event"] != "kept" or all(map(_is_entry, event["files"].values())))
        and all(isinstance(each, list) and all(isinstance(item, str) for item in each) for each in lists)
        and all(_is(event.get(name, 0), int) for name in ("stored", "size", "exit_code"))
    )


def _is_entry(value: Any) -> bool:
    """Of a file, or null."""
    return value is None or (
        value.keys() == {"sha256", "size"} and ID.fullmatch(value["sha256"]) is not None and _is(value["size"], int)
    )


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return (
        isinstance(value, kind) and not isinstance(value, bool) and not (isinstance(value, int) and abs(value) >= 2**63)
    )
