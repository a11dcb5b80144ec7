"""Accepting the loss of a file of a run, by its path, as `fsck` tells it, where nobody has it any more as it was.

What stands there is set aside under its SHA-256. Of what the run was given it says so itself, in a `kept` event, and what the file was may turn
up again, and counts then. Of its events those stay that can be read, as they read now, but for what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from llmos_cli.core import aside, atomic, kept, ledger
from llmos_cli.core.endings import closed_again
from llmos_cli.core.journal import Journal, line
from llmos_cli.core.listing import folders, read_bytes
from llmos_cli.core.records import EVENTS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, NotFound, UsageError
from llmos_cli.events import Kept
from llmos_cli.operations.integrity.runs import begins, wrong_events

RUNS = "runs/"
_TAKE_AWAY = "`llmos fsck --repair` takes it from a remote that has the run; where none has, move runs/{run} out of the workspace, and the same ends it"


def named(ws: Workspace, names: Sequence[str]) -> list[str]:
    """Those of the names that are files of runs; UsageError where nothing is wrong with one, NotFound where there is no such run,
    Conflict where it still writes."""
    found = [name for name in names if name.startswith(RUNS)]
    for each in found:
        if _wrong(ws, each) is None:
            raise UsageError(
                f"nothing is wrong with {each}: there is nothing to give up",
                hint="`llmos fsck` says what is damaged",
            )
        _must_be_over(ws, each)
    return found


def _must_be_over(ws: Workspace, where: str) -> None:
    run, _, name = where.removeprefix(RUNS).partition("/")
    record = ws.index.record(run)
    if name == EVENTS and record is not None and record.alive:
        raise Conflict(f"run {run} is still running, and writes there", hint=f"`llmos stop {run}` ends it")


def still_wrong(ws: Workspace, names: Sequence[str]) -> dict[str, tuple[Path, str]]:
    """Those that repairing did not bring back, each with its run's folder and its name there."""
    return {each: file for each in names if (file := _wrong(ws, each)) is not None}


def accept(ws: Workspace, names: Sequence[str]) -> None:
    for each, file in still_wrong(ws, names).items():
        _give_up(ws, *file)
        ws.oplog.note(f"fsck --accept-loss {each}")


def _wrong(ws: Workspace, where: str) -> tuple[Path, str] | None:
    run, _, name = where.removeprefix(RUNS).partition("/")
    if run not in folders(ws.root / RUNS):
        raise NotFound(f"there is no run {run}", hint="`llmos ps --all` lists every run")
    path = ws.root / RUNS / run
    if name == EVENTS and not _begins(path / EVENTS):
        raise NotFound(f"nothing of {where} is left to keep", hint=_TAKE_AWAY.format(run=run))
    wrong = any(_wrong_events(ws, path)) if name == EVENTS else name in dict(kept.wrong(path))
    return (path, name) if wrong else None


def _begins(events: Path) -> bool:
    """Without its beginning nobody knows what run it was."""
    return events.exists() and begins(read_bytes(events))


def _wrong_events(ws: Workspace, run: Path) -> Iterator[str]:
    return wrong_events(ws, run.name, read_bytes(run / EVENTS), ws.ledger.find(run.name))


def _give_up(ws: Workspace, run: Path, name: str) -> None:
    """Said once it is safe elsewhere, and then taken away: killed in between, it is damage still and given up again."""
    if (run / name).exists():
        aside.keep(ws.dot, run / name)
    if name == EVENTS:
        rest = closed_again(read_bytes(run / name)) + line(Kept({name: None})).encode()
        atomic.write_bytes(run / name, rest, scratch=ws.dot / "tmp")
        ws.ledger.add([ledger.of(run, own=False)])  # nobody vouches for what it measured
        return
    if name in kept.expected(run):
        journal = Journal(run)
        journal.write(Kept({name: None}))
        journal.close()
    (run / name).unlink(missing_ok=True)
