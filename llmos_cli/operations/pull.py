"""pull: fetch, and let the current branch follow that of the remote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core.operation import Change
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import HEADS
from llmos_cli.core.view import Group, Lines, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, NotFound, UsageError
from llmos_cli.events import Emit, ignore
from llmos_cli.operations.fetch import FetchResult, fetched
from llmos_cli.operations.remote import named
from llmos_cli.operations.summary import shown_id
from llmos_cli.operations.verify import required


@dataclass(frozen=True)
class PullResult:
    """`before` and `checkpoint` are where the branch was and is (or, of a dry run, would be)."""

    fetched: FetchResult
    branch: str
    before: str
    checkpoint: str

    def view(self) -> View:
        if self.before == self.checkpoint:
            stays = f"{self.branch} is at {self.checkpoint[:12]} and has all of {self.fetched.remote}/{self.branch}"
            return Group([Lines([*self.fetched.lines(), stays])])
        came = ["from ", shown_id(self.before), " to "] if self.before else ["to "]
        moved = "would move" if self.fetched.dry_run else "moved"
        return Group([Lines([*self.fetched.lines(), [f"{self.branch} {moved} ", *came, shown_id(self.checkpoint)]])])


def pull(
    ws: Workspace,
    remote: str | None = None,
    *,
    trusted: Path | None = None,
    data: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> PullResult:
    """`trusted`: a public key or certificate that must vouch for where the remote's branch is, whether that is new here or not. Its
    parents are vouched for with it: their ids are in its manifest."""
    head = ws.head()
    if head.branch is None:
        raise UsageError("HEAD is on no branch that could follow", hint="`llmos checkout BRANCH`, or `llmos fetch`")
    theirs = fetched(ws, named(ws, remote), data=data, dry_run=dry_run, emit=emit)
    result, target, before = theirs.result, theirs.branches.get(head.branch), head.checkpoint
    if target is None:
        raise NotFound(
            f"{result.remote} has no branch {head.branch}",
            hint=f"it has {', '.join(theirs.branches) or 'none'}; `llmos push` brings yours there",
        )
    if trusted is not None and not dry_run:
        required(ws, ws.checkpoint(target), trusted)
    if before and target in with_ancestors(ws, [before]):
        return PullResult(result, head.branch, before, before)
    if before and before not in theirs.line(ws, target):
        raise _diverged(result.remote, head.branch, before, target)
    if not dry_run:
        ws.oplog.apply(f"pull {result.remote}", [Change(HEADS + head.branch, before, target)], emit=ws.emit)
    return PullResult(result, head.branch, before or "", target)


def _diverged(remote: str, branch: str, ours: str, theirs: str) -> Conflict:
    return Conflict(
        f"{branch} is at {ours[:12]} here and at {theirs[:12]} on {remote}, and neither comes from the other",
        hint=f"weights cannot be merged: compare with `llmos diff {branch} {remote}/{branch}`, then "
        f"`llmos branch -f {branch} {remote}/{branch}` takes theirs or `llmos push --force` puts yours there",
    )
