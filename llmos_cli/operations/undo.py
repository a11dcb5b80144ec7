"""undo: take back the last operation: refs, configs and removed weights return to what they were before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmos_cli.core import settings
from llmos_cli.core.operation import Change, Operation, told
from llmos_cli.core.view import Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.summary import SHORT


@dataclass(frozen=True)
class UndoResult:
    """`gone`: checkpoints of which `gc` freed something since, for good: no undo brings that back."""

    operation: Operation
    gone: tuple[str, ...] = ()

    def view(self) -> View:
        lines = [self.operation.name, *(f"  {each}" for each in told_changes(self.operation))]
        if self.gone:
            freed = ", ".join(each[:SHORT] for each in self.gone)
            lines.append(f"what `gc` freed since then does not come back: the weights of {freed}")
        return Lines(lines)


def undo(ws: Workspace, operation: str | None = None) -> UndoResult:
    """`operation`: the beginning of an id of `op log`; the last one that is still in force when absent."""
    undone = ws.oplog.undo(operation, also=lambda target: _forgotten(ws, target), emit=ws.emit)
    return UndoResult(undone, tuple(sorted(each for each in ws.oplog.freed_since(undone.of) if not _here(ws, each))))


def _forgotten(ws: Workspace, target: Operation) -> Iterable[Change]:
    if all(change.what != settings.NAME for change in target.changes):
        return ()
    from llmos_cli.operations import remote as remotes  # here: few operations are of llmos.yaml

    return remotes.forgotten_with(ws, target)


def _here(ws: Workspace, checkpoint: str) -> bool:
    """A remote may have brought it again."""
    return (ws.checkpoints / checkpoint).is_dir() and checkpoint not in ws.dropped


def told_changes(operation: Operation) -> Iterator[str]:
    """`main 3f2a91c0dd12 -> 77c1aa0912fe`: no colon, for what follows a branch called `secret` is no secret."""
    for change in operation.changes:
        if change.is_ref:
            yield f"{change.name} {told(change.before, change.after)} -> {told(change.after, change.before)}"
        elif change.removes:
            yield f"weights of {change.removes[:SHORT]} {'restored' if change.after is None else 'removed'}"
        elif change.loses:
            yield f"loss of {change.loses[:SHORT]} {'accepted' if change.after else 'not accepted any more'}"
        else:
            yield f"{_called(change)} {_done(operation, change)}"


def _called(change: Change) -> str:
    if change.snapshot:
        return f"snapshot {change.snapshot[:SHORT]}"
    return f"signature of {change.signed[:SHORT]}" if change.signed else change.name


def _done(operation: Operation, change: Change) -> str:
    if change.after is None:
        return "removed"
    if operation.kind == "undo":
        return "restored"
    return "written" if change.before is None else "changed"
