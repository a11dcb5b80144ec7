"""What fsck says of strangers: what lies where llmos keeps its own and is not llmos's. Nobody reads it, and nothing removes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmos_cli.core import heard, lost, reach
from llmos_cli.core.listing import entries, is_file, is_folder, what_else
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.integrity.whole import lost_marks


def in_the_way(ws: Workspace) -> Iterator[Problem]:
    """What stands in the place of a file that every check reads, so that there is none before it is moved away."""
    for path in (*(ws.dot / name for name in _READ_BY_ALL), *(Path(each.path) for each in entries(ws.dot / "locks"))):
        if what_else(path):
            found = not_plain(ws, path)
            yield replace(found, what=f"{found.what}; nothing else was checked")
    if link := reach.linked(ws.dot):
        yield Problem(link, "is a link, and should be a folder: move it away; nothing else was checked")


def not_plain(ws: Workspace, path: Path) -> Problem:
    return Problem(str(path.relative_to(ws.root)), f"is {what_else(path)}, and no plain file: move it away")


_READ_BY_ALL = ("operations.jsonl", "pending.json", "audit.jsonl", "audit.head", "ledger.jsonl", "storage", "identity")


def strangers(ws: Workspace) -> Iterator[Problem]:
    """Those among checkpoints and signatures are told with these."""
    damaged = {str(ws.root / lost.mark_of(each)) for each in lost_marks(ws)}  # told with the log of operations
    for entry in (each for each in _strange(ws) if not (each.path in damaged and is_file(each))):
        yield Problem(
            str(Path(entry.path).relative_to(ws.root)), "llmos did not put it there, and leaves it to you: move it away"
        )


def links(ws: Workspace) -> Iterator[Problem]:
    """In the place of folders of the user's: what is behind them is read, and no operation changes anything there."""
    for folder in (reach.CHECKPOINTS, reach.CONFIGS):
        if not (ws.root / folder).resolve().is_relative_to(ws.root.resolve()):
            yield Problem(folder, "is a link that leads out of the workspace: no operation changes anything behind it")


def _strange(ws: Workspace) -> Iterator[os.DirEntry[str]]:
    yield from (each for each in entries(ws.root / "runs") if not is_folder(each))
    configs = (each for each in entries(ws.configs) if not (each.is_file() or each.is_dir()))  # or links to such
    yield from (each for each in configs if Path(each.path).exists())
    for kept in (ws.refs, ws.dropped, ws.lost, ws.objects, ws.sealed, ws.snapshots):
        yield from kept.strange()
    yield from heard.strange(ws)
