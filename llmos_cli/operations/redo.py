"""redo: do again what the last undo took back."""

from __future__ import annotations

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.undo import UndoResult


def redo(ws: Workspace) -> UndoResult:
    return UndoResult(ws.oplog.redo(emit=ws.emit))
