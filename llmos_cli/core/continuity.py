"""Whether the log of operations is all of it: each move of a ref begins where the one before it left it, and what the audit log knows is
there, as it was written.

Nobody of llmos takes a line out of it or edits one. Where somebody did, undo would go where the edit says, and `gc` would remove what
the lost line protected. What was given up (`fsck --accept-loss`) is believed as it is up to there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmos_cli.core import lines
from llmos_cli.core.audit import Audit, Record, digest, parse
from llmos_cli.core.history import History
from llmos_cli.core.operation import Change, Operation, told
from llmos_cli.core.operation import parse as parsed
from llmos_cli.core.refs import FIRST, HEAD, HEADS, MOVED

ACCEPTED = "fsck --accept-loss .llmos/operations.jsonl"
"""With this begins the name of the operation from which on the log is to be all of it again."""
_REPAIRED = "fsck --repair"
"""Such an operation begins where somebody else put a ref, which has been told."""
BY_ITSELF = (ACCEPTED, _REPAIRED)
"""Operations about what somebody did by hand."""
_COLLECTED = "gc: "
"""What a full disk had no room to log: then it is done, and cannot be said."""
_LINE = rb'"line": "([0-9a-f]{64})", "number": [0-9]+, "operation": "([0-9a-f]+)"'
_KNOWN = rb'"operation": "([0-9a-f]+)"'
"""Of a record; within a text that it holds, each quote has a backslash before it. Nothing more exact comes first, so that they are found ten
times as fast; compiled where they are used: most commands import this and look for neither."""

HINT = f"`llmos fsck` tells more; a backup may have the log as it was; `llmos {ACCEPTED}` believes it as it is"


@dataclass(frozen=True)
class Flaw:
    """`ref`: where it shows, empty where an operation is missing; `operation`: that which does not follow, or is missing; `time` of it;
    `value`: the checkpoint (or snapshot) that it moved the ref to."""

    what: str
    operation: str
    time: float
    ref: str = ""
    value: str = ""


def flaws(log: History, audit: Audit, operations: Sequence[Operation] | None = None) -> list[Flaw]:
    """`operations`: those of the log, where they are known already."""
    operations = list(log.operations()) if operations is None else operations
    return [*torn(operations, audit), *missing(operations, audit), *edited(log, operations, audit)]


def torn(operations: Sequence[Operation], audit: Audit) -> Iterator[Flaw]:
    """Moves that do not begin where the one before left the ref."""
    left: dict[str, tuple[str | None, str]] = {}
    begins = _begins(operations)
    for at, operation in enumerate(operations):
        for change in operation.changes:
            if change.what != HEAD and not change.what.startswith(MOVED):
                continue
            before = left.get(change.what)
            if at > begins and not _follows(operation, change, before, audit):
                yield _torn(operation, change, before)
            left[change.what] = change.after, operation.id


def _begins(operations: Sequence[Operation]) -> int:
    return max((at for at, operation in enumerate(operations) if operation.name.startswith(ACCEPTED)), default=-1)


def _follows(operation: Operation, change: Change, before: tuple[str | None, str] | None, audit: Audit) -> bool:
    if change.before == (before[0] if before else FIRST if change.what == HEAD else None):
        return True
    if operation.name.startswith(_REPAIRED):
        return True
    return before is None and change.what.startswith((HEAD, HEADS)) and is_old_clone(audit)


def is_old_clone(audit: Audit) -> bool:
    """Whether it was cloned when a clone was recorded, and HEAD and its branch were written without an operation."""
    return any(record.what.startswith("clone ") and not record.operation for record in _records(audit))


def _torn(operation: Operation, change: Change, before: tuple[str | None, str] | None) -> Flaw:
    value = before[0] if before else None
    who = f"the one before ({before[1]}) left it at" if before else "none before made it: it was at"
    said = f"operation {operation.id} (`{operation.name}`) moved it from {told(change.before, value)}, and {who} {told(value, change.before)}"
    return Flaw(
        f"{said}: the log was edited, or the ref by hand", operation.id, operation.time, change.what, change.after or ""
    )


def missing(operations: Sequence[Operation], audit: Audit) -> list[Flaw]:
    """Operations that the audit log knows, and the log of operations does not. One that was to begin that log anew is told there first:
    cut off between the two, it is nothing lost, and the damage that it was about is still told."""
    known = {operation.id for operation in operations}
    there = audit.text()
    if not audit.breaks() and all(each.decode() in known for each in re.findall(_KNOWN, there)):
        return []
    gone = [record for record in _records(audit) if record.operation and record.operation not in known]
    begins = _begins(operations)
    since = operations[begins].time if begins >= 0 else 0.0
    return [
        Flaw(f"operation {each.operation} (`{each.what}`) is missing: the audit log has it", each.operation, each.time)
        for each in gone
        if each.time >= since and not each.what.startswith((_COLLECTED, ACCEPTED))
    ]


def edited(log: History, operations: Sequence[Operation], audit: Audit) -> Iterator[Flaw]:
    """Operations whose line is not the one that the audit log knows: an edit that all that follows was made to agree with shows
    nowhere else. Only those lines are parsed of which it does not have the hash."""
    there = audit.text()
    was = dict(re.findall(_LINE, there))
    if not was:
        return
    believed = {operation.id for operation in operations[: _begins(operations) + 1]}
    odd = (line for line in lines.read(log.path) if digest(line).encode() not in was)
    known = {identifier.decode() for identifier in was.values()} - believed
    for operation in filter(None, map(parsed, odd)):
        if operation.id in known:
            what = (
                f"operation {operation.id} (`{operation.name}`) was edited: the audit log has the hash of another line"
            )
            yield Flaw(what, operation.id, operation.time)


def _records(audit: Audit) -> Iterator[Record]:
    yield from audit.before_breaks()
    yield from (record for line in audit.lines() if (record := parse(line)) is not None and record.is_sealed)
