"""Accepting the loss of what a run was given: a file of its folder that nobody has any more as it was is given up by its path, as `fsck` tells it.

The run says so itself, in a `kept` event. What stands there is set aside under its SHA-256; what the file was may turn up again, and counts then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmos_cli.core import aside, kept
from llmos_cli.core.journal import Journal
from llmos_cli.core.listing import folders
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.events import Kept

RUNS = "runs/"


def named(ws: Workspace, names: Sequence[str]) -> list[str]:
    """Those of the names that are files of runs; UsageError where one is what the run was given, NotFound where there is no such run."""
    found = [name for name in names if name.startswith(RUNS)]
    for each in found:
        if _wrong(ws, each) is None:
            raise UsageError(
                f"{each} is what the run was given: there is nothing to give up",
                hint="`llmos fsck` says what is damaged",
            )
    return found


def accept(ws: Workspace, names: Sequence[str]) -> None:
    """What of these is wrong still: repairing may have brought it back."""
    for each in names:
        if (file := _wrong(ws, each)) is not None:
            _give_up(ws, *file)
            ws.oplog.note(f"fsck --accept-loss {each}")


def _wrong(ws: Workspace, where: str) -> tuple[Path, str] | None:
    run, _, name = where.removeprefix(RUNS).partition("/")
    if run not in folders(ws.root / RUNS):
        raise NotFound(f"there is no run {run}", hint="`llmos ps --all` lists every run")
    path = ws.root / RUNS / run
    return (path, name) if name in dict(kept.wrong(path)) else None


def _give_up(ws: Workspace, run: Path, name: str) -> None:
    """Said once it is safe elsewhere, and then taken away: killed in between, it is damage still and given up again."""
    if (run / name).exists():
        aside.keep(ws.dot, run / name)
    if name in kept.expected(run):
        journal = Journal(run)
        journal.write(Kept({name: None}))
        journal.close()
    (run / name).unlink(missing_ok=True)
