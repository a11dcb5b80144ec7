"""Looking at a stage: whether what it would make is remembered, there, or somewhere it can be brought back from; else why it is stale."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_cli import device
from llmos_cli.core.processes import host
from llmos_cli.core.redaction import hidden
from llmos_cli.core.view import short
from llmos_cli.errors import Conflict
from llmos_cli.events import Emit
from llmos_cli.operations.pipeline import code
from llmos_cli.operations.pipeline.cache import Cache
from llmos_cli.operations.pipeline.facts import Facts, Given, facts, key_of, why
from llmos_cli.operations.pipeline.files import Hashes, tree
from llmos_cli.operations.pipeline.memory import Last, Memory, Result
from llmos_cli.operations.pipeline.process import Processes
from llmos_cli.operations.pipeline.stages import Stage

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class RunOptions:
    """`fresh`: do the named stages (all, where none is named) whatever is remembered; `cache`: a folder outside the workspace, a URL or a remote."""

    jobs: int = 1
    fresh: bool = False
    cache: str | None = None


@dataclass
class Work:
    """One `llmos run` while it lasts; `made`: stage -> its checkpoint, as far as it is known."""

    ws: Workspace
    stages: Sequence[Stage]
    memory: Memory
    cache: Cache | None
    hashes: Hashes
    fresh: frozenset[str]
    threads: int
    emit: Emit
    processes: Processes = field(default_factory=Processes)
    made: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, ws: Workspace, stages: Sequence[Stage], names: Sequence[str], options: RunOptions, emit: Emit) -> Work:
        named = {stage.name for stage in stages if not names or stage.name in names or stage.family in names}
        return cls(
            ws,
            stages,
            Memory(ws),
            Cache(ws, options.cache, stages) if options.cache else None,
            Hashes(ws.cache / "hashes.json"),
            frozenset(named if options.fresh else ()),
            max(1, device.threads() // options.jobs),
            _in_turn(emit),
        )

    @property
    def given(self) -> Given:
        return Given(self.ws, self.made, self.hashes)


def _in_turn(emit: Emit) -> Emit:
    """Several threads speak to one terminal."""
    turn = threading.Lock()

    def speak(event: Any) -> None:
        with turn:
            emit(event)

    return speak


@dataclass(frozen=True)
class Look:
    """`result`: what is remembered under the key and is all there; `elsewhere` brings it back otherwise, where it can be."""

    facts: Facts
    key: str
    why: str
    result: Result | None = None
    elsewhere: Callable[[], Result | None] | None = None


def look_at(work: Work, stage: Stage) -> Look:
    found = facts(stage, work.given)
    key = key_of(found)
    last = work.memory.last(stage.name)
    if last is not None and last.alive:
        hint = f"wait for it, or {_end_of(work.ws, last)} ends it"
        raise Conflict(f"{stage.name} is still running, begun by a run that is gone", hint=hint)
    reason = _reason(last, key, found)
    if stage.name in work.fresh:
        return Look(found, key, "--fresh")
    result = work.memory.result(key)
    if result is not None and not (missing := _missing(work, stage, result) or _not_made_here(work, stage, result)):
        return Look(found, key, "", result) if last and last.key == key else Look(found, key, "made before", result)
    if result is not None and _can_be_placed(work, result):
        return Look(found, key, f"{missing}, and was kept", elsewhere=lambda: _placed(work, result))
    if work.cache is not None and stage.verb != "deploy" and (kept := work.cache.result(stage, key, work.emit)):
        if not (untrusted := _foreign(work, kept)):
            return Look(found, key, "from the cache", elsewhere=lambda: _fetched(work, stage, key))
        reason = f"{untrusted} in the cache may be code and was not made here"
    return Look(found, key, missing if result is not None and last and last.key == key else reason)


def _end_of(ws: Workspace, last: Last) -> str:
    """How to end what a stage's process does: its run, or where it has none its group of processes."""
    assert last.process is not None, "it is alive"
    pid, _, where = last.process
    for record in ws.runs.alive():
        if (record.pid, record.pid_started, record.host) == last.process:
            return f"`llmos stop {record.id}`"
    return f"`kill -- -{pid}`" if where == host() else f"`kill -- -{pid}` on {where}"


def _reason(last: Last | None, key: str, found: Facts) -> str:
    """Why it is not up to date."""
    if last is None:
        return "it never ran here"
    if last.key != key:
        return why(last.facts, hidden(found))
    return unfinished(last) or "what it made is not remembered"


def unfinished(last: Last) -> str:
    """How it ended before it was done, "" where it was done or still runs."""
    if last.status == "done" or last.alive:
        return ""
    return "it failed" if last.status == "failed" else "it was interrupted"


def _missing(work: Work, stage: Stage, result: Result) -> str:
    """What of a result is not there any more, "" for nothing."""
    ws = work.ws
    if result.checkpoint and result.checkpoint in ws.dropped:
        return f"{short(result.checkpoint)} was removed"
    if result.checkpoint and not (ws.checkpoints / result.checkpoint).is_dir():
        return f"{short(result.checkpoint)} is gone"
    if stage.verb == "deploy" and not any(record.id == result.said.get("run") for record in ws.runs.alive()):
        return f"{result.said.get('name')} is not running"
    for name in stage.options.outputs:
        if not (ws.root / name).exists():
            return f"{name} is gone"
    if stage.options.outputs and tree(ws.root, stage.options.outputs, work.hashes) != result.outputs:
        return f"{', '.join(stage.options.outputs)} is not what it wrote"
    return ""


def _can_be_placed(work: Work, result: Result) -> bool:
    """Outputs of which the contents are kept; a checkpoint that was removed is not, and code only where it may run."""
    there = not result.checkpoint or (work.ws.checkpoints / result.checkpoint).is_dir()
    kept = [work.memory.contents(sha256).is_file() for sha256 in result.outputs.values()]
    return there and bool(kept) and all(kept) and not _foreign(work, result)


def _foreign(work: Work, result: Result) -> str:
    return code.foreign(work.ws, result.outputs, work.stages, lambda name: work.memory.contents(result.outputs[name]))


def _not_made_here(work: Work, stage: Stage, result: Result) -> str:
    """That something stands in its place and yet does not count: the workspace may be somebody else's, with all that it remembers. An
    export is worth what its checkpoint is, which came the same way: nothing in it is listed because it was written here."""
    if stage.verb != "sh":
        return ""
    untrusted = code.foreign(work.ws, result.outputs, work.stages, lambda name: work.ws.root / name)
    return f"{untrusted} may be code and was not made here" if untrusted else ""


def _placed(work: Work, result: Result) -> Result | None:
    return result if work.memory.bring_back(work.ws.root, result.outputs) else None


def _fetched(work: Work, stage: Stage, key: str) -> Result | None:
    assert work.cache is not None, "it was looked into"
    result = work.cache.bring_back(stage, work.memory, key, work.emit)
    return _placed(work, result) if result is not None and result.outputs else result
