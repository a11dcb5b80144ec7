"""What protects a checkpoint from being removed: HEAD, branches, tags, stages, those of remotes, living runs, and the operation log's window.

A ref of a run (`refs/runs/`) protects nothing: it only makes the checkpoint findable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from llmos_cli.core import ancestry, continuity, heard
from llmos_cli.core.records import RunRecord
from llmos_cli.core.refs import HEADS, REMOTES, STAGES, TAGS
from llmos_cli.errors import Corrupt

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


def users(ws: Workspace, checkpoint: str) -> list[str]:
    """Who names or uses this very checkpoint right now, in words: `branch main`, `tag base`, `deployment chat`."""
    head = ws.head()
    found = ["HEAD"] if head.checkpoint == checkpoint else []
    found += [f"branch {name}" for name, value in ws.refs.under(HEADS).items() if value == checkpoint]
    found += [f"tag {name}" for name, value in ws.refs.under(TAGS).items() if value == checkpoint]
    found += [f"stage {name}" for name, value in ws.refs.under(STAGES).items() if value == checkpoint]
    found += [_called(record) for record in ws.runs.alive() if checkpoint in in_use(record)]
    return found


def _called(record: RunRecord) -> str:
    if not record.alive:
        return f"{record.id}, which can be resumed"
    return f"deployment {record.name or record.id}" if record.operation == "deploy" else f"the running {record.id}"


def in_use(record: RunRecord) -> set[str]:
    """Checkpoints that a run reads, started from or made."""
    return {*record.parents, *record.checkpoints, record.base_checkpoint} - {""}


def unprotected(ws: Workspace, since: float) -> set[str]:
    """All checkpoints that need not stay: neither named nor an ancestor of what is, for a branch is worth its whole line. Corrupt
    where nobody can tell, because something of such a line is missing or cannot be read.
    `since`: where the operation log's window begins, in seconds since the epoch."""
    heard.check(ws, undone="nothing was removed")
    held = used(ws)
    walked = ancestry.walk(ws, held | ws.oplog.protected(since))
    lost = walked.ends and walked.ends - (ws.oplog.collected() - held)
    if lost := lost | ws.index.unreadable():
        raise ancestry.broken(ws, lost, undone="nothing was removed")
    if rest := walked.rest - ws.index.lost():
        check_named(ws)
    return rest


def used(ws: Workspace) -> set[str]:
    """What a name or a run holds now, whatever the log of operations may go back to."""
    named = {*ws.refs.pointing(), *ws.refs.under(REMOTES).values(), ws.head().checkpoint or ""}
    return (named | needed(ws)) - {""}


def check_named(ws: Workspace, checkpoints: Container[str] | None = None) -> None:
    """What a ref names that is not where the log of operations left it would go for nothing: Corrupt, if it was at one of these, where
    only some are to go."""
    for ref, (value, _) in ws.oplog.left().items():
        if value and (checkpoints is None or value in checkpoints) and ws.refs.read(ref) != value:
            raise Corrupt(
                f"{ref} is not where the log of operations left it, and nothing was removed",
                hint="`llmos fsck` tells more; `llmos fsck --repair` puts it back",
            )


def needed(ws: Workspace) -> set[str]:
    """By runs that live or can be resumed, deployments among them."""
    return {checkpoint for record in _unfinished(ws) for checkpoint in in_use(record)}


def readers(ws: Workspace, checkpoint: str) -> list[str]:
    """Runs that live or can be resumed and have read a checkpoint or made it, in words."""
    return [_called(record) for record in _unfinished(ws) if checkpoint in {*record.parents, *record.checkpoints}]


def _unfinished(ws: Workspace) -> list[RunRecord]:
    return [record for record in ws.index.undone_records() if record.alive or (record.path / "state").is_dir()]


def with_ancestors(ws: Workspace, checkpoints: Iterable[str]) -> set[str]:
    return ws.index.line(checkpoints)


def holders(ws: Workspace) -> Counter[str]:
    """SHA-256 -> in how many checkpoints that still have their weights, in the clear, a file with this content is."""
    return Counter(ws.index.holders(without=ws.dropped.all() | ws.sealed.all()))


def undoable(ws: Workspace, since: float) -> set[str]:
    """Checkpoints whose weights were removed, and which undoing an operation at or after `since` brings back."""
    dropped = ws.dropped.all()
    return dropped & ws.oplog.removed(since) if dropped else dropped


def marked_by_nobody(ws: Workspace) -> set[str]:
    """Checkpoints that a mark says have no weights, which are all here, though no operation removed them: somebody put the mark there.
    What a fetch brought without weights has a mark and no operation too, and nothing that could be lost. Of a log that was begun
    anew nobody knows what it said before: marks that are older are believed."""
    marked = ws.dropped.all()
    others = marked - ws.oplog.without_weights() if marked else marked
    odd = {each for each in others if not ws.dropped.is_bare(each) and has_all(ws, each)}
    if not odd or not ws.oplog.path.exists():
        return set()
    begun = max((each.time for each in ws.oplog.operations() if each.name.startswith(continuity.ACCEPTED)), default=0.0)
    return {each for each in odd if ws.dropped.written(each) > begun}


def has_all(ws: Workspace, checkpoint: str) -> bool:
    """Whether all its files are here, sealed or in the clear, whatever a mark says."""
    try:
        return checkpoint in ws.sealed or ws.dropped.whole(ws.root, checkpoint)
    except Corrupt:
        return False  # its manifest is damaged, which is told elsewhere


def stored(ws: Workspace, since: float) -> set[str]:
    """SHA-256 of what checkpoints hold that still have their weights in the clear, or get them back where an operation is undone."""
    return ws.index.held(without=(ws.dropped.all() - undoable(ws, since)) | ws.sealed.all())
