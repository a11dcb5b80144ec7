"""redo: do again what the last undo took back."""

from __future__ import annotations

from contextlib import nullcontext

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.undo import UndoResult


def redo(ws: Workspace) -> UndoResult:
    # It may remove a snapshot of data again, as `data rm` does.
    with nullcontext() if ws.oplog.rehearsing else ws.snapshots.still(ws.emit):
        return UndoResult(ws.oplog.redo(emit=ws.emit))
