"""The audit log: who did what, one record a line, each with the hash of the one before.

    .llmos/audit.jsonl   {"number", "time", "user", "host", "what", "command", "operation", "before", "hash"}
    .llmos/audit.head    {"number", "hash", "logged", "operation"} of the last one, apart: so a log that lost its end is found out

Records are only ever added, one for each operation of `oplog.py` and for what leaves the workspace: nothing is undone by them.
The record is synced before the head, so after a crash the log is one record ahead of its head, or ends in half a record; the
next record settles either. Whoever may write both files can write another history: the head, noted elsewhere, shows that too.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.processes import host
from llmos_cli.core.redaction import command_line, redacted
from llmos_cli.errors import UNREADABLE

NOTHING = "0" * 64
_TAIL = 1 << 16
"""More than a record can be."""


@dataclass(frozen=True)
class Record:
    """`time` in seconds since the epoch; `operation`: its id in the log of operations, where it is one; `before`: the hash of
    the record before, `hash`: that of all the rest of this one."""

    number: int
    time: float
    user: str
    host: str
    what: str
    command: str
    operation: str
    before: str
    hash: str = ""

    def sealed(self) -> Record:
        told = asdict(replace(self, hash=""))
        return replace(self, hash=hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest())


@dataclass(frozen=True)
class Head:
    """Of the last record; `logged`: the last operation of the log of operations that has one, `operation`: that of the last
    record."""

    number: int = 0
    hash: str = NOTHING
    logged: str = ""
    operation: str = ""


@dataclass(frozen=True)
class Author:
    """Who is doing something, and by which command."""

    user: str = ""
    host: str = ""
    command: str = ""


def author() -> Author:
    return Author(_user(), host(), command_line(sys.argv))


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # in a container, say
        return str(os.geteuid())


class Audit:
    """Whoever appends holds the lock of the refs."""

    def __init__(self, dot: Path) -> None:
        self.path = dot / "audit.jsonl"
        self._head = dot / "audit.head"
        self._scratch = dot / "tmp"

    def head(self) -> Head | None:
        """None where there is none, or none that makes sense."""
        try:
            head = Head(**json.loads(self._head.read_bytes()))
            return head if _typed(head, Head()) else None
        except (FileNotFoundError, *UNREADABLE):
            return None

    def append(self, what: str, by: Author, *, operation: str = "", logged: bool = False, at: float = 0.0) -> None:
        """`operation`: its id; `logged`: the log of operations has it. `at`: when it was done; now where that is not given."""
        head = self.settled()
        if head != (self.head() or Head()):  # another crash now must leave the log one record ahead, not two
            self._point_at(head)
        at = at or time.time()
        number, before = head.number + 1, head.hash
        record = Record(number, at, by.user, by.host, redacted(what), by.command, operation, before).sealed()
        self._write(record)
        self._point_at(Head(number, record.hash, operation if logged else head.operation, operation))

    def settled(self) -> Head:
        """The head, brought to what a crash kept it from: half a record goes, a whole one counts. A log that somebody has
        tampered with is gone on with where the head says it ended, so that it stays found out."""
        head = self.head() or Head()
        lines = self._last_lines()
        if lines and lines[-1]:
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))
        last = parse(lines[-2]) if len(lines) > 1 else None
        if last is not None and (last.number, last.before) == (head.number + 1, head.hash) and last.sealed() == last:
            head = Head(last.number, last.hash, head.operation, last.operation)
        return head

    def _last_lines(self) -> list[bytes]:
        """The last piece is what follows the last newline: nothing, but for a crash."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
                return file.read().split(b"\n")
        except FileNotFoundError:
            return []

    def _write(self, record: Record) -> None:
        first = not self.path.exists()
        with atomic.refusals(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                atomic.write_all(descriptor, json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if first:
                atomic.sync_directory(self.path.parent)

    def _point_at(self, head: Head) -> None:
        atomic.write_text(self._head, json.dumps(asdict(head)) + "\n", scratch=self._scratch)

    def lines(self) -> list[bytes]:
        """All of them; the last piece is what follows the last newline."""
        return self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]


def parse(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
        return record if _typed(record, _EXAMPLE) else None
    except UNREADABLE:
        return None


_EXAMPLE = Record(0, 0.0, "", "", "", "", "", "")


def _typed(found: Record | Head, example: Record | Head) -> bool:
    """JSON may hold anything under a name; a whole number may stand for a time."""
    return all(
        type(getattr(found, name)) in (type(value), *((int,) if isinstance(value, float) else ()))
        for name, value in asdict(example).items()
    )


@dataclass(frozen=True)
class Checked:
    """`records` that are sound, all of them where `wrong` is empty; `number` is that of the first that is not. `torn`: a crash
    cut the last one off, or kept the head from it, which the next operation settles."""

    records: tuple[Record, ...]
    number: int = 0
    wrong: str = ""
    torn: bool = False

    @property
    def sentence(self) -> str:
        return f"record {self.number} {self.wrong}"


def check(audit: Audit, operations: Sequence[tuple[str, str]] = ()) -> Checked:
    """Every record against the one before, the last one against the head, and all against the `operations` (id, name) that were
    made since there are audits: but for the last of those, which a crash may have kept from being recorded."""
    *lines, rest = audit.lines()
    records: list[Record] = []
    before = NOTHING
    for number, line in enumerate(lines, 1):
        record = parse(line)
        if wrong := _wrong(record, line, number, before):
            return Checked(tuple(records), number, wrong)
        assert record is not None
        records.append(record)
        before = record.hash
    return _against_head(audit, records, bool(rest), operations)


def _wrong(record: Record | None, line: bytes, number: int, before: str) -> str:
    if record is None:
        return "is no record"
    if record.sealed() != record or json.dumps(asdict(record), sort_keys=True).encode() != line:
        return "was edited: its hash is another"
    if record.number != number:
        return f"is number {record.number}: one was removed, added or moved"
    return "" if record.before == before else "does not follow the one before, which was replaced"


def _against_head(audit: Audit, records: list[Record], torn: bool, operations: Sequence[tuple[str, str]]) -> Checked:
    sound = tuple(records)
    head = audit.head() or Head()
    ahead = len(records) == head.number + 1 and records[-1].before == head.hash
    if len(records) < head.number:
        return Checked(sound, len(records) + 1, f"is missing, and all after it: there were {head.number}")
    if not ahead and (len(records), records[-1].hash if records else NOTHING) != (head.number, head.hash):
        return Checked(sound, len(records), f"is not the last one that was written: that was number {head.number}")
    known = {record.operation for record in records}
    for identifier, name in operations[:-1]:
        if identifier not in known:
            return Checked(sound, len(records) + 1, f"should be there: operation {identifier} (`{name}`) has none")
    return Checked(sound, torn=torn or ahead)
