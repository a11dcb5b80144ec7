"""audit: who did what in this workspace, and whether the record of it is whole."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

from llmos_cli.core import audit as records
from llmos_cli.core import noted
from llmos_cli.core.aside import FOLDER
from llmos_cli.core.audit import Break, Checked, Record
from llmos_cli.core.view import Cell, Line, Lines, Span, Table, View
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.integrity import unrecorded
from llmos_cli.operations.summary import SHORT, age


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
    """`head`: the hash that stands for all records; who notes it elsewhere can tell that nobody wrote them anew (`--head`).
    `torn`: lines of which a crash left half a record; `ahead`: it kept the head from the last one. `since`: the number of the
    record up to which this user had verified the log before; `remembered`: whether that is known next time. `breaks`: where the log was
    begun anew, by somebody who said so."""

    records: int
    head: str
    torn: tuple[int, ...]
    ahead: bool
    since: int
    remembered: bool = True
    breaks: tuple[Break, ...] = ()

    def view(self) -> View:
        lines: list[Line] = [
            ["each of ", str(self.records), " records follows the one before; head ", Span(self.head, "id")]
        ]
        for each in self.breaks:
            lines.append([told_break(each)])
        if self.since:
            lines.append([f"the first {self.since} are those that you verified before"])
        if self.torn:
            lines.append([f"half a record that a crash left is passed over: line {', '.join(map(str, self.torn))}"])
        if self.ahead:
            lines.append(["a crash kept the head from the last one: the next operation settles that"])
        if not self.remembered:
            lines.append(["your own folder cannot be written: that you verified this is not remembered"])
        return Lines(lines)


def told_break(found: Break) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.time))
    return f"the audit log was begun anew on {when}: what was there before was damaged, and is kept in {DOT}/{FOLDER}/{found.set_aside}"


def audit(ws: Workspace, *, limit: int | None = None) -> AuditResult:
    """As they stand there; a line that is no record is left out here, and found by `verify`."""
    return AuditResult(tuple(islice(ws.oplog.audit.newest(), limit)))


def verify(ws: Workspace, *, head: str = "") -> VerifiedAudit:
    """Corrupt, naming the first record that is not as it was written; or where the log is not the one whose `head` was noted, or
    that this user verified before. From now on it is."""
    with ws.oplog.locked(ws.emit) if ws.writable else nullcontext():
        checked = audited(ws)
    if checked.wrong:
        raise Corrupt(f"the audit log is not what was written: {checked.sentence}", hint=_BACKUP)
    older = ws.oplog.audit.before_breaks()
    if head and not any(record.hash.startswith(head) for record in (*checked.records, *older)):
        raise Corrupt(f"the audit log was written anew: no record has the hash {head[:SHORT]}", hint=_BACKUP)
    before = noted.seen(ws.root)
    here = before and before.hash in {each.hash for each in checked.records[before.number - 1 : before.number]}
    if before and not here and before.hash not in {each.hash for each in older}:
        raise Corrupt(
            f"the audit log was written anew: record {before.number} is not the one that you verified",
            hint=f"{_BACKUP}; where another workspace stands here now, take it out of {noted.file()}",
        )
    now = noted.Seen(len(checked.records), checked.head)
    remembered = not checked.records or now == before or noted.note(ws.root, now)
    since = before.number if before and here else 0
    return VerifiedAudit(now.number, now.hash, checked.torn, checked.ahead, since, remembered, checked.breaks)


_BACKUP = "a backup has it as it was; who can write to .llmos can do this; `llmos fsck --accept-loss .llmos/audit.jsonl` begins it anew"


def audited(ws: Workspace) -> Checked:
    """What was logged before the log was begun anew may have had its record in what was damaged."""
    since = max((each.time for each in ws.oplog.audit.breaks()), default=0.0)
    made = [each for each in ws.oplog.operations() if each.by is not None and each.time > since]
    checked = records.check(ws.oplog.audit, [(each.id, each.name) for each in made])
    if checked.records or checked.wrong or checked.breaks or not (done := unrecorded.by_audit(ws)):
        return checked
    return replace(checked, number=1, wrong=f"is missing, and all after it: {done}")
