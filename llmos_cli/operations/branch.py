"""branch: a name that moves along with what is committed on it."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEAD, HEADS, SYMBOLIC, check_name
from llmos_cli.core.view import View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.operations.named import Named, NamedList, check_free, listed


@dataclass(frozen=True)
class BranchResult:
    """`checkpoint` is what the branch is at now; empty when it was deleted. `was`: its name before it was renamed."""

    name: str
    checkpoint: str
    before: str | None
    was: str | None = None

    def view(self) -> View:
        if not self.checkpoint:
            was = f"it was at {self.before[:12]}" if self.before else "what it held made no sense"
            return f"branch {self.name} deleted; {was}"
        if self.was:
            return f"branch {self.was} is called {self.name} now"
        moved = f"; it was at {self.before[:12]}" if self.before else ""
        return f"branch {self.name} is at {self.checkpoint[:12]}{moved}"


def branch(ws: Workspace, name: str, rev: str = "HEAD", *, force: bool = False) -> BranchResult:
    """Make a branch, or with `force` move one. HEAD stays where it is: `checkout` moves that."""
    ref = HEADS + check_name("branch", name)
    checkpoint, before = ws.resolve(rev), ws.oplog.said(ref) if force else ws.refs.read(ref)
    if before and before != checkpoint and not force:
        raise UsageError(f"branch {name} is at {before[:12]} already", hint=f"`llmos branch -f {name} {rev}` moves it")
    check_free(ws, HEADS, name)
    if before != checkpoint or (force and ws.refs.senseless(ref)):
        ws.oplog.apply(f"branch {name}", [Change(ref, before, checkpoint)], emit=ws.emit)
    return BranchResult(name, checkpoint, before if before != checkpoint else None)


def delete_branch(ws: Workspace, name: str) -> BranchResult:
    """The checkpoints stay; they can be found by id until `gc` takes those that nothing else names."""
    ref = HEADS + check_name("branch", name)
    before = ws.oplog.said(ref) if ws.refs.senseless(ref) else _existing(ws, name)
    if ws.head().branch == name:
        raise UsageError(f"{name} is the current branch", hint="`llmos checkout` another one first")
    ws.oplog.apply(f"branch -d {name}", [Change(HEADS + name, before, None)], emit=ws.emit)
    return BranchResult(name, "", before)


def rename_branch(ws: Workspace, name: str, new: str) -> BranchResult:
    before = _existing(ws, name)
    if ws.refs.read(HEADS + check_name("branch", new)):
        raise UsageError(f"there is a branch {new} already", hint="choose another name")
    check_free(ws, HEADS, new, leaves=name)
    changes = [Change(HEADS + name, before, None), Change(HEADS + new, None, before)]
    if ws.head().branch == name:
        changes.append(Change(HEAD, f"{SYMBOLIC}{HEADS}{name}", f"{SYMBOLIC}{HEADS}{new}"))
    ws.oplog.apply(f"branch -m {name} {new}", changes, emit=ws.emit)
    return BranchResult(new, before, before, was=name)


def branches(ws: Workspace) -> NamedList:
    return NamedList("branch", tuple(Named(name, summary) for name, summary in listed(ws, HEADS)), ws.head().branch)


def _existing(ws: Workspace, name: str) -> str:
    before = ws.refs.read(HEADS + check_name("branch", name))
    if before is None:
        raise NotFound(f"there is no branch {name}", hint="`llmos branch` lists them")
    return before
