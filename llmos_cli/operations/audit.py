"""audit: who did what in this workspace, and whether the record of it is whole."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from llmos_cli.core import audit as records
from llmos_cli.core.audit import Checked, Record
from llmos_cli.core.view import Cell, Line, Lines, Span, Table, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.summary import age


@dataclass(frozen=True)
class AuditResult:
    """The newest first."""

    records: tuple[Record, ...]

    def view(self) -> View:
        if not self.records:
            return "nothing was recorded yet"
        rows: list[list[Cell]] = [
            [each.number, age(each.time), f"{each.user}@{each.host}", each.what, each.command] for each in self.records
        ]
        return Table(["", "when", "who", "what", "command"], rows, align="rllll")


@dataclass(frozen=True)
class VerifiedAudit:
    """`head`: the hash that stands for all records; who notes it elsewhere can tell that nobody wrote them anew. `torn`: a
    crash cut the last one off."""

    records: int
    head: str
    torn: bool

    def view(self) -> View:
        lines: list[Line] = [
            ["each of ", str(self.records), " records follows the one before; head ", Span(self.head, "id")]
        ]
        if self.torn:
            lines.append(["the last one was cut off by a crash: the next operation settles that"])
        return Lines(lines)


def audit(ws: Workspace, *, limit: int | None = None) -> AuditResult:
    """As they stand there; a line that is no record is left out here, and found by `verify`."""
    found = [record for line in ws.oplog.audit.lines() if (record := records.parse(line)) is not None]
    return AuditResult(tuple(found[::-1][:limit]))


def verify(ws: Workspace) -> VerifiedAudit:
    """Corrupt, naming the first record that is not as it was written."""
    with ws.oplog.locked(ws.emit) if ws.writable else nullcontext():
        checked = audited(ws)
    if checked.wrong:
        raise Corrupt(
            f"the audit log is not what was written: {checked.sentence}",
            hint="a backup has it as it was; who can write to .llmos can do this",
        )
    head = checked.records[-1].hash if checked.records else records.NOTHING
    return VerifiedAudit(len(checked.records), head, checked.torn)


def audited(ws: Workspace) -> Checked:
    made = [(operation.id, operation.name) for operation in ws.oplog.operations() if operation.by is not None]
    return records.check(ws.oplog.audit, made)
