"""op log: the operations that moved refs, changed configs or removed something, newest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from llmos_cli.core.operation import Operation
from llmos_cli.core.view import Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.log import aligned
from llmos_cli.operations.summary import SHORT, age
from llmos_cli.operations.undo import told_changes


@dataclass(frozen=True)
class OpLogResult:
    operations: tuple[Operation, ...]

    def view(self) -> View:
        if not self.operations:
            return "no operations yet"
        return Lines(aligned([_row(operation) for operation in self.operations]))


def op_log(ws: Workspace, *, limit: int | None = None) -> OpLogResult:
    return OpLogResult(tuple(islice(ws.oplog.newest(), limit)))


def _row(operation: Operation) -> list[str | Span]:
    return [
        Span(operation.id, "id"),
        age(operation.time),
        operation.name,
        ", ".join([*told_changes(operation), *_freed(operation)]),
    ]


def _freed(operation: Operation) -> Iterator[str]:
    if operation.drops:
        yield f"freed for good: the weights of {', '.join(each[:SHORT] for each in operation.drops)}"
    if operation.collects:
        yield f"freed for good: {', '.join(each[:SHORT] for each in operation.collects)}"
