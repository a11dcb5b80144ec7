"""undo: take back the last operation: refs and configs return to what they were before it."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_cli.core.oplog import Change, Operation
from llmos_cli.core.refs import HEADS, SYMBOLIC
from llmos_cli.core.view import Lines, View
from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class UndoResult:
    operation: Operation

    def view(self) -> View:
        return Lines([self.operation.name, *(f"  {told_change(change)}" for change in self.operation.changes)])


def undo(ws: Workspace, operation: str | None = None) -> UndoResult:
    """`operation`: the beginning of an id of `op log`; the last one that is still in force when absent."""
    return UndoResult(ws.oplog.undo(operation, emit=ws.emit))


def told_change(change: Change) -> str:
    """`main: 3f2a91c0dd12 -> 77c1aa0912fe`"""
    name = change.what.removeprefix(HEADS).removeprefix("refs/")
    if not change.is_ref:
        return f"{name} {'restored' if change.after is not None else 'removed'}"
    return f"{name}: {_told(change.before)} -> {_told(change.after)}"


def _told(value: str | None) -> str:
    if value is None:
        return "nothing"
    return value.removeprefix(SYMBOLIC + HEADS) if value.startswith(SYMBOLIC) else value[:12]
