"""The audit log: who did what, one record a line, each with the hash of the one before.

    .llmos/audit.jsonl   {"number", "time", "user", "host", "what", "command", "operation", "line", "before", "hash"}
    .llmos/audit.head    {"number", "hash", "logged", "operation"} of the last one, apart: so a log that lost its end is found out

Records are only ever added, one for each operation of `oplog.py` and for what leaves the workspace: nothing is undone by them.
The record is synced before the head, so after a crash the log is one record ahead of its head, or ends in half a record. Nothing
is ever cut off, not even that: where a file system shows an old size, it could be somebody's whole record. The half stays on a line
of its own, which counts for nothing. Whoever may write both files can write another history: so each user's own folder has the head
that `audit --verify` last saw there (`noted.py`), and one that was noted elsewhere can be asked for.

A log that was damaged can be begun anew, by name (`fsck --accept-loss`): its file is set aside under its hash (`aside.py`), and that is
what the first record of the new one follows. So the break stays known, and what is before it stays what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmos_cli.core import aside, atomic, lines
from llmos_cli.core.listing import read_bytes
from llmos_cli.core.processes import host, user_name
from llmos_cli.core.redaction import command_line, redacted
from llmos_cli.errors import UNREADABLE

NOTHING = "0" * 64
_JSON = json.JSONEncoder(sort_keys=True)


@dataclass(frozen=True)
class Record:
    """`time` in seconds since the epoch; `operation`: its id in the log of operations, where it is one, `line`: the SHA-256 of its
    line there, so that neither can be edited without the other (records of older llmos have none); `before`: the hash of the record
    before, `hash`: that of all the rest of this one."""

    number: int
    time: float
    user: str
    host: str
    what: str
    command: str
    operation: str
    before: str
    hash: str = ""
    line: str = ""

    def sealed(self) -> Record:
        return replace(self, hash=self._hash())

    @property
    def is_sealed(self) -> bool:
        """Whether its hash is that of all the rest of it."""
        return self.hash == self._hash()

    def written(self) -> bytes:
        return self._written(self.hash)

    def _hash(self) -> str:
        return hashlib.sha256(self._written("")).hexdigest()

    def _written(self, sealed: str) -> bytes:
        told = {
            **vars(self),
            "hash": sealed,
        }  # not `asdict`, which copies all that is in it: twice the time of all else here
        if not self.line:
            del told["line"]
        return _JSON.encode(told).encode()


@dataclass(frozen=True)
class Head:
    """Of the last record; `logged`: the last operation of the log of operations that has one, `operation`: that of the last
    record."""

    number: int = 0
    hash: str = NOTHING
    logged: str = ""
    operation: str = ""


@dataclass(frozen=True)
class Break:
    """Where a log was begun anew: `set_aside` is the hash of what was there, `time` in seconds since the epoch."""

    set_aside: str
    time: float


@dataclass(frozen=True)
class Author:
    """Who is doing something, and by which command."""

    user: str = ""
    host: str = ""
    command: str = ""


def author() -> Author:
    return Author(user_name(os.geteuid()), host(), command_line(sys.argv))


class Audit:
    """Whoever appends holds the lock of the refs."""

    def __init__(self, dot: Path) -> None:
        self.path = dot / "audit.jsonl"
        self._dot = dot
        self._head = dot / "audit.head"
        self._scratch = dot / "tmp"
        self.files = (self.path, self._head)

    def head(self) -> Head | None:
        """None where there is none, or none that makes sense."""
        try:
            head = Head(**json.loads(read_bytes(self._head)))
            return head if _typed(head, Head()) else None
        except (FileNotFoundError, *UNREADABLE):
            return None

    def append(
        self, what: str, by: Author, *, operation: str = "", line: bytes = b"", logged: bool = False, at: float = 0.0
    ) -> None:
        """`operation`: its id; `line`: of it in the log of operations, without its end; `logged`: that log has it. `at`: when it was done;
        now where that is not given."""
        head = self._durable()
        at = at or time.time()
        number, before = head.number + 1, head.hash
        record = Record(number, at, by.user, by.host, redacted(what), by.command, operation, before, line=digest(line))
        record = record.sealed()
        lines.append(self.path, record.written() + b"\n")
        self._point_at(Head(number, record.hash, operation if logged else head.operation, operation))

    def _durable(self) -> Head:
        """`settled`, and on disk with the record that it is of, neither of which its writer may have lived to sync: another crash now
        must leave the log one record ahead, not two."""
        head = self.settled()
        if head == (self.head() or Head()):
            with atomic.refusals(self._head):
                atomic.sync_directory(self._dot)
        else:
            atomic.sync_file(self.path)
            self._point_at(head)
        return head

    def settled(self) -> Head:
        """The head, brought to what a crash kept it from: half a record is passed over, a whole one counts. A log that somebody
        has tampered with is gone on with where the head says it ended, so that it stays found out."""
        head = self.head() or Head()
        last = next(self.newest(), None)
        if last is not None and (last.number, last.before) == (head.number + 1, head.hash) and last.is_sealed:
            head = Head(last.number, last.hash, head.operation, last.operation)
        return head

    def begin_anew(self, what: str, by: Author, *, logged: str) -> Record:
        """What is there is set aside, and the log begins with a record that follows it. Last of all it gets its place: whoever is killed
        before has changed nothing that was not damaged already. `logged`: the last operation, which has its record in what is set aside."""
        before = aside.keep(self._dot, self.path)
        record = Record(1, time.time(), by.user, by.host, redacted(what), by.command, "", before).sealed()
        self._point_at(Head(1, record.hash, logged, ""))
        atomic.write_bytes(self.path, record.written() + b"\n", scratch=self._scratch)
        return record

    def breaks(self) -> list[Break]:
        """The last one first; up to one whose file is not what was set aside."""
        found: list[Break] = []
        text = lines.start(self.path)
        while (record := parse(text.split(b"\n", 1)[0])) is not None and record.before != NOTHING:
            if (old := aside.read(self._dot, record.before)) is None:
                break
            found.append(Break(record.before, record.time))
            text = old
        return found

    def before_breaks(self) -> list[Record]:
        """What can be read of the records in all that was set aside; each has its own hash."""
        texts = [aside.read(self._dot, each.set_aside) or b"" for each in self.breaks()]
        found = [parse(line) for text in texts for line in text.split(b"\n")]
        return [record for record in found if record is not None and record.is_sealed]

    def _point_at(self, head: Head) -> None:
        atomic.write_text(self._head, json.dumps(asdict(head)) + "\n", scratch=self._scratch)

    def newest(self) -> Iterator[Record]:
        """As they stand there, the last one first; what is no record is passed over."""
        return filter(None, map(parse, lines.backwards(self.path)))

    def text(self) -> bytes:
        """All of it."""
        return lines.whole(self.path) or b""

    def lines(self) -> list[bytes]:
        return lines.read(self.path)


def digest(line: bytes) -> str:
    """What a record says of an operation's line."""
    return hashlib.sha256(line).hexdigest() if line else ""


def parse(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
        return record if _typed(record, _EXAMPLE) else None
    except UNREADABLE:
        return None


_EXAMPLE = Record(0, 0.0, "", "", "", "", "", "")


def _typed(found: Record | Head, example: Record | Head) -> bool:
    """JSON may hold anything under a name; a whole number may stand for a time."""
    values = zip(vars(found).values(), vars(example).values(), strict=True)
    return all(type(value) is type(like) or (type(value) is int and type(like) is float) for value, like in values)


@dataclass(frozen=True)
class Checked:
    """`records` that are sound, all of them where `wrong` is empty; `number` is that of the first that is not. `torn`: lines of
    which a crash left half a record, in whose place the next one stands; `ahead`: it kept the head from the last record."""

    records: tuple[Record, ...]
    number: int = 0
    wrong: str = ""
    torn: tuple[int, ...] = ()
    ahead: bool = False
    breaks: tuple[Break, ...] = ()

    @property
    def sentence(self) -> str:
        return f"record {self.number} {self.wrong}"

    @property
    def head(self) -> str:
        return self.records[-1].hash if self.records else NOTHING


def check(audit: Audit, operations: Sequence[tuple[str, str]] = ()) -> Checked:
    """Every record against the one before, the last one against the head, and all against the `operations` (id, name) that were
    made since there are audits: but for the last of those, which a crash may have kept from being recorded."""
    records: list[Record] = []
    torn: list[int] = []
    *whole, rest = audit.lines() or [b""]
    breaks = tuple(audit.breaks())
    begins = breaks[0].set_aside if breaks else NOTHING
    for number, line in enumerate([*whole, *([rest] if rest else [])], 1):
        before = records[-1].hash if records else begins
        record = parse(line)
        if record is None and _is_half(line, before):
            torn.append(number)
        elif wrong := _wrong(record, line, len(records) + 1, before):
            return Checked(tuple(records), len(records) + 1, wrong, tuple(torn))
        elif record is not None:
            records.append(record)
    return _against_head(audit, Checked(tuple(records), torn=tuple(torn), breaks=breaks), operations)


def _is_half(line: bytes, before: str) -> bool:
    """As far as it goes the beginning of what would have followed; a record that was damaged leaves one missing all the same."""
    begins = f'{{"before": "{before}"'.encode()
    return line[: len(begins)] == begins[: len(line)]


def _wrong(record: Record | None, line: bytes, number: int, before: str) -> str:
    if record is None:
        return "is no record"
    if not record.is_sealed or record.written() != line:
        return "was edited: its hash is another"
    if record.number != number:
        return f"is number {record.number}: one was removed, added or moved"
    if record.before == before:
        return ""
    if number == 1:
        return "follows what was set aside under its hash, which is not there or was altered"
    return "does not follow the one before, which was replaced"


def _against_head(audit: Audit, sound: Checked, operations: Sequence[tuple[str, str]]) -> Checked:
    records, head = sound.records, audit.head() or Head()
    ahead = bool(records) and (len(records), records[-1].before) == (head.number + 1, head.hash)
    if len(records) < head.number:
        return replace(sound, number=len(records) + 1, wrong=f"is missing, and all after it: there were {head.number}")
    if not ahead and (len(records), sound.head) != (head.number, head.hash):
        another = "is not the one that was written last, by audit.head"
        more = f"was not written, by audit.head: number {head.number} was the last"
        return replace(sound, number=len(records), wrong=another if len(records) == head.number else more)
    known = {record.operation for record in (*records, *audit.before_breaks())}
    for identifier, name in operations[:-1]:
        if identifier not in known:
            return replace(
                sound, number=len(records) + 1, wrong=f"should be there: operation {identifier} (`{name}`) has none"
            )
    return replace(sound, ahead=ahead)
