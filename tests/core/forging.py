"""The audit log as somebody writes it who knows how to hash: each record follows the one before, and the head is of the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

from llmos_cli.core.audit import NOTHING, Record, digest, parse
from llmos_cli.core.operation import parse as operation_in
from llmos_cli.core.workspace import Workspace


def audit_anew(ws: Workspace, change: Callable[[Record], Record]) -> None:
    audit, before, written = ws.oplog.audit, NOTHING, b""
    for record in filter(None, map(parse, audit.lines())):
        anew = replace(change(record), before=before).sealed()
        before, written = anew.hash, written + anew.written() + b"\n"
    audit.path.write_bytes(written)
    if (head := audit.head()) is not None:
        (ws.dot / "audit.head").write_text(json.dumps(asdict(replace(head, hash=before))))


def lines_anew(ws: Workspace) -> None:
    """To agree with a log of operations that was edited."""
    lines = {found.id: line for line in ws.oplog.path.read_bytes().splitlines() if (found := operation_in(line))}
    audit_anew(ws, lambda record: replace(record, line=digest(lines.get(record.operation, b""))))
