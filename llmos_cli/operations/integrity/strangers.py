"""What fsck says of strangers: what lies where llmos keeps its own and is not llmos's. Nobody reads it, and nothing removes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core.listing import entries, is_folder
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.problem import Problem


def strangers(ws: Workspace) -> Iterator[Problem]:
    """Those among checkpoints and signatures are told with these."""
    for entry in _strange(ws):
        yield Problem(
            str(Path(entry.path).relative_to(ws.root)), "llmos did not put it there, and leaves it to you: move it away"
        )


def _strange(ws: Workspace) -> Iterator[os.DirEntry[str]]:
    yield from (each for each in entries(ws.root / "runs") if not is_folder(each))
    for kept in (ws.refs, ws.dropped, ws.lost, ws.objects, ws.sealed, ws.snapshots):
        yield from kept.strange()
