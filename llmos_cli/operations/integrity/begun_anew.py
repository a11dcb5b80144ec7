"""Logs that were damaged are begun anew, by name: what is there is set aside, never lost, and the new one says so and has its hash.

The audit log begins with a record that follows what was set aside. The log of operations keeps the lines that make sense, and an
operation that says where refs are now, wherever those lines left them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from llmos_cli.core import aside, atomic, continuity, lines, noted
from llmos_cli.core.audit import Author, author
from llmos_cli.core.operation import Change, new, parse, written
from llmos_cli.core.refs import FIRST, HEAD, MOVED
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.operations.audit import audited
from llmos_cli.operations.integrity import unrecorded

AUDIT, OPERATIONS = ".llmos/audit.jsonl", ".llmos/operations.jsonl"


def damaged(ws: Workspace, log: str) -> bool:
    if log == AUDIT:
        return bool(audited(ws).wrong)
    flawed = continuity.flaws(ws.oplog, ws.oplog.audit)
    return bool(flawed or ws.oplog.unreadable()) or gone(ws) != ""


def gone(ws: Workspace) -> str:
    """What tells of operations, where there is no log of them; empty where there is, or nothing does."""
    head = ws.oplog.audit.head()
    if not ws.oplog.path.exists() and head is not None and head.logged != "":
        return "the audit log tells of operations"
    return unrecorded.by_operations(ws)


def begin_anew(ws: Workspace, logs: Sequence[str]) -> None:
    """The audit first: what is done to the other is recorded in it."""
    for log in (AUDIT, OPERATIONS):
        if log in logs:
            with ws.oplog.locked(ws.emit):
                _ANEW[log](ws)


def _audit(ws: Workspace) -> None:
    last = [operation.id for operation in ws.oplog.operations()][-1:]
    what = f"fsck --accept-loss {AUDIT}: it was damaged, and begins anew"
    record = ws.oplog.audit.begin_anew(what, author(), logged="".join(last))
    noted.note(ws.root, noted.Seen(record.number, record.hash))


def _operations(ws: Workspace) -> None:
    kept = aside.keep(ws.dot, ws.oplog.path)
    name = f"{continuity.ACCEPTED}: it was damaged, and is kept in .llmos/{aside.FOLDER}/{kept}"
    operation = new(name, [*_where_refs_are(ws)])
    line = written(operation).encode()
    by = operation.by or Author()
    ws.oplog.audit.append(name, by, operation=operation.id, line=line.strip(), logged=True, at=operation.time)
    sound = [line + b"\n" for line in lines.read(ws.oplog.path) if parse(line) is not None]
    atomic.write_bytes(ws.oplog.path, b"".join([*sound, line]), scratch=ws.dot / "tmp")


def _where_refs_are(ws: Workspace) -> Iterator[Change]:
    left: dict[str, str | None] = {HEAD: FIRST, **{ref: value for ref, (value, _) in ws.oplog.left().items()}}
    for ref in sorted({*left, *(prefix + name for prefix in MOVED for name in ws.refs.names(prefix))}):
        if not ws.refs.senseless(ref) and (now := ws.refs.read(ref)) != left.get(ref):
            yield Change(ref, left.get(ref), now)


_ANEW: dict[str, Callable[[Workspace], None]] = {AUDIT: _audit, OPERATIONS: _operations}


def logs_in(ws: Workspace, names: Sequence[str]) -> list[str]:
    """Those of the names that are logs, as `fsck` tells them; UsageError where one is as it was written."""
    found = [name for name in names if name in _ANEW]
    for log in found:
        if not damaged(ws, log):
            raise UsageError(
                f"{log} is as it was written: there is nothing to give up", hint="`llmos fsck` says what is damaged"
            )
    return found
