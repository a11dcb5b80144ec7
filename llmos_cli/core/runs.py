"""Runs: each operation is a transaction with a folder and a process with a life.

    runs/20261122-104501-train-3f2a/
      config.yaml    the resolved config        configs/     the user's config files, verbatim (`kept.py`)
      events.jsonl   what happened              log.txt      the same for people
      state/         what `--resume` needs, while it can be resumed

A run commits its checkpoint whole or leaves the workspace as it was. No lock is held while it computes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from llmos_cli.core import access, atomic, journal, kept, ledger, storing
from llmos_cli.core.listing import read_text
from llmos_cli.core.locks import lock
from llmos_cli.core.manifest import Made
from llmos_cli.core.names import folded, plain
from llmos_cli.core.operation import Change
from llmos_cli.core.processes import this_process
from llmos_cli.core.records import EVENTS, RunRecord
from llmos_cli.core.redaction import hidden, redacted, words
from llmos_cli.core.refs import HEAD, HEADS, RUNS, Head
from llmos_cli.errors import Conflict, Interrupted, LlmosError, Terminated, UsageError
from llmos_cli.events import Emit, Ended, Event, Saved, Started

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace


def begin(
    workspace: Workspace,
    operation: str,
    *,
    config: Mapping[str, Any],
    files: Sequence[Path],
    argv: Sequence[str] | None,
    parents: Sequence[str],
    onto: Head | None,
    name: str,
) -> Run:
    """Make the run's folder, complete before it appears under its name, with its Started event inside."""
    head = onto or workspace.onto()
    run = _identifier(operation)
    started = _started(run, operation, head.name, head.checkpoint or "", argv, parents, name)
    with workspace.stage() as folder:
        given = kept.write(folder, {kept.CONFIG: _yaml(hidden(config)), **_configs(files)})
        atomic.write_text(folder / EVENTS, journal.line(started) + journal.line(given))
        atomic.write_text(folder / "log.txt", journal.sentence(started))
        if not atomic.publish(folder, workspace.root / "runs" / run):
            raise Conflict(f"run {run} exists already", hint="try again")
    return Run(workspace, run, started)


@contextlib.contextmanager
def resume(workspace: Workspace, record: RunRecord, argv: Sequence[str] | None) -> Iterator[Run]:
    """Reopen a run that ended without a result. Conflict when it is still running, UsageError when it is done."""
    access.require_change()
    with lock(workspace.dot / "locks" / f"run-{record.id}", emit=workspace.emit):
        record = workspace.runs.find(record.id)
        check_resumable(record)
        started = _started(
            record.id, record.operation, record.base, record.base_checkpoint, argv, record.parents, record.name
        )
        run = Run(workspace, record.id, started)
        run.committed = workspace.refs.read(RUNS + record.id)
        run.emit(started)
        # The index trusts a run that has ended until the folder's time changes, and then looks at those whose lock was taken.
        os.utime(run.path.parent)
    with run:
        yield run


def check_resumable(record: RunRecord) -> None:
    """Conflict where it is still running, UsageError where it is done."""
    if record.alive:
        raise Conflict(
            f"run {record.id} is still running (process {record.pid})", hint=f"`llmos logs {record.id}` follows it"
        )
    if record.status == "done":
        raise UsageError(
            f"run {record.id} is done: there is nothing to resume", hint=f"`llmos logs {record.id}` shows what it did"
        )


def _started(
    run: str,
    operation: str,
    base: str,
    base_checkpoint: str,
    argv: Sequence[str] | None,
    parents: Sequence[str],
    name: str,
) -> Started:
    process = this_process()
    return Started(
        run,
        operation,
        process.pid,
        process.started,
        process.host,
        base,
        argv=tuple(words(sys.argv if argv is None else argv)),
        base_checkpoint=base_checkpoint,
        parents=tuple(parents),
        name=name,
    )


def _identifier(operation: str) -> str:
    """Sorts by time: UTC, because local time repeats an hour each autumn."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{operation}-{os.urandom(2).hex()}"


def _configs(files: Sequence[Path]) -> dict[str, str]:
    """Where in its folder a run keeps each, and what it says there."""
    found: dict[str, str] = {}
    for file in files:
        name = _free(plain(file.name), {folded(Path(each).name) for each in found})
        found[f"{kept.CONFIGS}/{name}"] = redacted(read_text(file, linked=True))
    return found


def _free(name: str, taken: set[str]) -> str:
    """That name, or `stem-2.yaml` and so on where two of the files are called the same, on whatever disk."""
    number, free = 1, name
    while folded(free) in taken:
        number += 1
        free = f"{Path(name).stem}-{number}{Path(name).suffix}"
    return free


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(dict(config), default=str))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


class Run:
    """One run while it lives: made by `Workspace.begin` or `Runs.resume`, used as a context manager.

    `base` is the branch (or the detached id) that was current when it first started; `committed`: of a run that is resumed, what
    it had committed when it was cut off.
    """

    def __init__(self, workspace: Workspace, identifier: str, started: Started) -> None:
        self._workspace = workspace
        self.id = identifier
        self.path = workspace.root / "runs" / identifier
        self.state = self.path / "state"
        self.started = started
        self.base = started.base
        self.committed: str | None = None
        self._listeners: list[Emit] = []
        self._journal = journal.Journal(self.path)
        self._handler: Any = None

    def listen(self, emit: Emit) -> None:
        """Let `emit` hear every event of this run too."""
        self._listeners.append(emit)

    def emit(self, event: Event) -> None:
        self._journal.write(event)
        for listener in self._listeners:
            listener(event)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Go on with another config than the recorded one."""
        text = _yaml(hidden(config))
        self.emit(kept.of({kept.CONFIG: text}))  # said before it is written: what is there is one of the last two said
        atomic.write_text(self.path / kept.CONFIG, text)

    def commit(self, staged: Path, made: Made, *, move: bool = True) -> Checkpoint:
        """Make the staged directory a checkpoint, whole or not at all, and move the branch that was current at the start.

        Conflict when that branch moved meanwhile: the checkpoint stays, recorded in `refs/runs/<run>`. Where the run had committed
        before it was cut off and resumed, that stands.
        """
        move = move and not self._workspace.keep_branch
        if (already := self._committed(move)) is not None:
            self.emit(Saved(already.id, "", already.manifest.size))
            return already
        prepared = storing.prepare(self._workspace, staged, made, emit=self.emit)
        checkpoint, conflict = prepared.checkpoint, None
        with self._workspace.oplog.locked(self.emit):
            stored = storing.publish(self._workspace, prepared)
            if move:
                conflict = self._move(checkpoint.id)
            if not move or conflict is not None:
                self._workspace.refs.write(RUNS + self.id, checkpoint.id)
        moved = "" if not move or conflict is not None else "HEAD" if self._detached else self.base
        self.emit(Saved(checkpoint.id, moved, checkpoint.manifest.size, stored))
        if conflict is not None:
            raise self._moved_meanwhile(checkpoint.id) from conflict
        return checkpoint

    def _committed(self, move: bool) -> Checkpoint | None:
        """What it had committed when it was cut off: once is enough."""
        ws, made = self._workspace, self.committed
        if made is None or not (ws.checkpoints / made).is_dir():
            return None
        stayed = made != self.started.base_checkpoint and all(each.run != self.id for each in ws.oplog.operations())
        if move and stayed:
            raise self._moved_meanwhile(made)
        return ws.checkpoint(made)

    @property
    def _detached(self) -> bool:
        return self.base == self.started.base_checkpoint

    def _move(self, checkpoint: str) -> Conflict | None:
        """The branch and the run's ref, in one operation: both say so, or neither."""
        before = self.started.base_checkpoint or None
        if before == checkpoint:
            self._workspace.refs.write(RUNS + self.id, checkpoint)
            return None
        change = Change(HEAD if self._detached else HEADS + self.base, before, checkpoint)
        name = f"{self.started.operation} on {self.base[:12] if self._detached else self.base}"
        try:
            self._workspace.oplog.apply_locked(name, [change], run=self.id)
        except Conflict as conflict:
            return conflict
        return None

    def _moved_meanwhile(self, checkpoint: str) -> Conflict:
        where = self.base[:12]
        now = self._workspace.refs.read(HEADS + self.base) or ""
        return Conflict(
            f"{self.base if now else 'HEAD'} moved to {now[:12] or 'another checkpoint'} while this run made {checkpoint[:12]}"
            + (f" from {self.started.base_checkpoint[:12]}" if self.started.base_checkpoint else ""),
            hint=f"nothing is lost: `llmos branch NAME {checkpoint[:12]}` keeps it, `llmos branch -f {where} {checkpoint[:12]}` moves {where} to it",
        )

    def __enter__(self) -> Run:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGTERM, partial(_terminate, os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        told = self._told(error)
        try:
            self._end(told)
        finally:
            self._journal.close()
        if told is not error and told is not None:
            raise told from error

    def _told(self, error: BaseException | None) -> BaseException | None:
        """Ctrl-C and what a disk refuses (a library wrote, and knows no better) as our own errors; others as they are."""
        if isinstance(error, KeyboardInterrupt):
            return Interrupted(f"{self.started.operation} was interrupted", hint=self._way_on())
        if isinstance(error, Exception) and not isinstance(error, LlmosError):
            refused = atomic.system_error(error)
            return (refused and atomic.refusal(refused, refused.filename or self.path)) or error
        return error

    def _end(self, error: BaseException | None) -> None:
        if error is None:
            shutil.rmtree(self.state, ignore_errors=True)
            self._close(Ended("done"))
            return
        if isinstance(error, LlmosError) and error.final:
            shutil.rmtree(self.state, ignore_errors=True)
        # A full disk may be what ended it, and then there is no room to say so: the run will show as died.
        with contextlib.suppress(LlmosError, OSError):
            self._close(_ended(error))

    def _close(self, ended: Ended) -> None:
        self.emit(ended)
        # Said afterwards: killed in between it has ended, and nobody vouches for it, as on a disk that this line makes full.
        with contextlib.suppress(LlmosError, OSError):
            self._workspace.ledger.add([ledger.of(self.path, own=True)])

    def _way_on(self) -> str:
        resumable = self.state.is_dir() and any(self.state.iterdir())
        return f"`llmos {self.started.operation} --resume` goes on where it stopped" if resumable else _AS_BEFORE


_AS_BEFORE = "the workspace is as it was before: run it again when you like"


def _terminate(owner: int, number: int, frame: FrameType | None) -> None:
    """Only in the run's own process: a forked worker inherits this handler, and must simply die of the signal."""
    if os.getpid() != owner:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    raise Terminated("terminated by SIGTERM", hint="`llmos ps --all` shows what the run had done")


def _ended(error: BaseException) -> Ended:
    if isinstance(error, Interrupted):
        return Ended("interrupted", Interrupted.exit_code, "interrupted")
    if isinstance(error, Terminated):
        return Ended("terminated", Terminated.exit_code, error.message)
    if isinstance(error, LlmosError):
        return Ended("failed", error.exit_code, error.message)
    if isinstance(error, SystemExit | GeneratorExit):
        code = getattr(error, "code", 1)
        return Ended("done" if code in (None, 0) else "failed", code if isinstance(code, int) else 1)
    return Ended("failed", 1, f"{type(error).__name__}: {error}")
