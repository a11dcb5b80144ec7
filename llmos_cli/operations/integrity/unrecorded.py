"""What shows that something was done here, where the logs that would say so have nothing: somebody took them away.

A new workspace has nothing to show. One that is older than the audit log has its operations, and those do not say who did them.
"""

from __future__ import annotations

from llmos_cli.core import continuity
from llmos_cli.core.listing import folders, what_else
from llmos_cli.core.operation import told
from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.core.refs import DATA, FIRST, HEAD, HEADS, STAGES, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.problem import readable

_KINDS = {HEADS: "branch", TAGS: "tag", STAGES: "stage", DATA: "name of data"}


def by_audit(ws: Workspace) -> str:
    """Of an audit log without a record: what should have one. Empty where nothing should."""
    shown = _shown(ws)  # first: an operation that makes it is pending until it is logged
    if ws.oplog.is_pending:
        return ""
    operations = list(ws.oplog.operations())
    for each in operations:
        if each.by is not None:
            return f"operation {each.id} (`{each.name}`) is there"
    return "" if operations else shown


def by_operations(ws: Workspace) -> str:
    """Of a log of operations that has none: what one of them made. Empty where none did; old clones wrote their refs without."""
    shown = _shown(ws)
    if ws.oplog.is_pending or any(True for _ in ws.oplog.operations()) or continuity.is_old_clone(ws.oplog.audit):
        return ""
    return shown


def _shown(ws: Workspace) -> str:
    for prefix, kind in _KINDS.items():
        for name in ws.refs.names(prefix):
            return f"{kind} {name} is there"
    head, _ = readable(ws, HEAD)
    if head not in (None, FIRST):
        return f"HEAD is at {told(head)}"
    for run in folders(ws.root / "runs"):
        for event in [] if what_else(path := ws.root / "runs" / run / EVENTS) else read_events(path)[0]:
            if event["event"] == "saved" and event.get("moved"):
                return f"run {run} moved {event['moved']}"
    return ""
