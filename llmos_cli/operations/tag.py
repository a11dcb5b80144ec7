"""tag: a name for a checkpoint that stays where it is."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_cli.core.operation import Change
from llmos_cli.core.refs import STAGES, TAGS, check_name
from llmos_cli.core.view import View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.operations.named import Named, NamedList, check_free, listed

_STAGE = STAGES.removeprefix("refs/")


@dataclass(frozen=True)
class TagResult:
    """`checkpoint` is what the tag names now; empty when it was deleted."""

    name: str
    checkpoint: str
    before: str | None

    def view(self) -> View:
        if not self.checkpoint:
            named = f"it named {self.before[:12]}" if self.before else "what it held made no sense"
            kind = "name" if self.name.startswith(_STAGE) else "tag"
            return f"{kind} {self.name} deleted; {named}"
        moved = f"; it named {self.before[:12]}" if self.before else ""
        return f"tag {self.name} names {self.checkpoint[:12]}{moved}"


def tag(ws: Workspace, name: str, rev: str = "HEAD", *, force: bool = False) -> TagResult:
    ref = TAGS + check_name("tag", name)
    checkpoint, before = ws.resolve(rev), ws.oplog.said(ref) if force else ws.refs.read(ref)
    if before and before != checkpoint and not force:
        raise UsageError(f"tag {name} names {before[:12]} already", hint=f"`llmos tag -f {name} {rev}` moves it")
    check_free(ws, TAGS, name)
    if before != checkpoint or (force and ws.refs.senseless(ref)):
        ws.oplog.apply(f"tag {name}", [Change(ref, before, checkpoint)], emit=ws.emit)
    return TagResult(name, checkpoint, before if before != checkpoint else None)


def delete_tag(ws: Workspace, name: str) -> TagResult:
    """Also the name of what a stage made, `stages/NAME`: a pipeline that has the stage no more keeps it for ever otherwise."""
    ref = TAGS + check_name("tag", name)
    if name.startswith(_STAGE) and not _is_there(ws, ref):
        ref = f"refs/{name}"
    if not _is_there(ws, ref):
        stages = "; `llmos run --dry-run` lists the stages" if name.startswith(_STAGE) else ""
        raise NotFound(f"there is no tag {name}", hint=f"`llmos tag` lists them{stages}")
    before = ws.oplog.said(ref)
    ws.oplog.apply(f"tag -d {name}", [Change(ref, before, None)], emit=ws.emit)
    return TagResult(name, "", before)


def _is_there(ws: Workspace, ref: str) -> bool:
    return ws.oplog.said(ref) is not None or ws.refs.senseless(ref)


def tags(ws: Workspace) -> NamedList:
    return NamedList("tag", tuple(Named(name, summary) for name, summary in listed(ws, TAGS)), None)
