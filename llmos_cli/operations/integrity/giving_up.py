"""Accepting a loss: what nobody has any more is given up by name, in one operation that `undo` takes back, so that all else can be
collected, backed up and pushed again.

Where a checkpoint or its manifest is lost, a mark stands for it (`core/lost.py`), and what it came from stays, as far as its run
tells; where only weights are, they count as removed. What is whole is never given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmos_cli.core import ancestry, dropped, heard, lost, manifest
from llmos_cli.core.listing import folders
from llmos_cli.core.lost import Loss
from llmos_cli.core.objects import hash_file
from llmos_cli.core.operation import Change
from llmos_cli.core.protection import used, with_ancestors
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import AmbiguousRevision, Corrupt, UsageError
from llmos_cli.operations.summary import SHORT

CHECKPOINT, WEIGHTS = "checkpoint", "weights"
_DIGITS = 4
"""At least of an id, as everywhere."""


@dataclass(frozen=True)
class GivenUp:
    """`what`: the `checkpoint`, or its `weights` alone."""

    checkpoint: str
    what: str

    @property
    def told(self) -> str:
        at = self.checkpoint[:SHORT]
        if self.what == WEIGHTS:
            return f"the weights of {at} were given up: they are lost for good, and count as removed"
        return f"checkpoint {at} was given up: it is lost for good, and what it came from stays"


def lost_ones(ws: Workspace, revs: Sequence[str]) -> list[str]:
    """Full ids of what is to be given up; UsageError where one is whole, or was given up before."""
    found = list(dict.fromkeys(_named(ws, rev) for rev in revs))
    for each in found:
        if each in ws.index.lost():
            raise UsageError(f"checkpoint {each[:SHORT]} was given up already", hint="`llmos undo` takes that back")
        if not (heard.is_here(ws, each) or each in heard.told_of(ws)):
            raise UsageError(
                f"nothing here ever told of a checkpoint {apart(each, folders(ws.checkpoints))}: there is nothing to give up",
                hint="`llmos fsck` says what names it, and what puts that right",
            )
        if not what_is_lost(ws, each):
            raise UsageError(
                f"checkpoint {each[:SHORT]} is whole: there is nothing to give up",
                hint="`llmos rm` removes weights that you do not want",
            )
    return found


def accept(ws: Workspace, checkpoints: Sequence[str]) -> None:
    """What of these is lost still: repairing may have brought it back."""
    with ws.oplog.locked(ws.emit):
        lost = {each: what for each in checkpoints if (what := what_is_lost(ws, each))}
        changes = [change for each, what in lost.items() for change in _changes(ws, each, what)]
        if changes:
            names = " ".join(each[:SHORT] for each in lost)
            ws.oplog.apply_locked(f"fsck --accept-loss {names}", changes)


def given_up(ws: Workspace) -> Iterator[GivenUp]:
    """All that was, and is not here again."""
    holes = ws.index.lost()
    for each in sorted(ws.lost.all()):
        if each in holes or each in ws.dropped:
            yield GivenUp(each, CHECKPOINT if each in holes else WEIGHTS)


def tidy(ws: Workspace) -> None:
    """Marks of what somebody brought back by hand go; under the lock of the refs."""
    holes = ws.index.lost()
    for each in ws.lost.all():
        if each not in holes and each not in ws.dropped:
            ws.lost.restore(each)


def what_is_lost(ws: Workspace, checkpoint: str) -> str:
    """Empty where all of it that should be here is: every byte is hashed."""
    if not _has_manifest(ws, checkpoint):
        return CHECKPOINT
    return "" if checkpoint in ws.dropped or _has_weights(ws, checkpoint) else WEIGHTS


def _has_manifest(ws: Workspace, checkpoint: str) -> bool:
    try:
        return manifest.read(ws.checkpoints / checkpoint).is_of(checkpoint)
    except Corrupt:
        return False


def _has_weights(ws: Workspace, checkpoint: str) -> bool:
    try:
        sealed = ws.sealed.seal(checkpoint) if checkpoint in ws.sealed else None
    except Corrupt:
        return False
    if sealed:
        files = {ws.sealed.path(entry.sha256): entry for entry in sealed.tree.values()}
    else:
        files = {ws.checkpoints / checkpoint / name: e for name, e in ws.manifest(checkpoint).tree.items()}
    return all(path.is_file() and hash_file(path) == entry for path, entry in files.items())


def _named(ws: Workspace, rev: str) -> str:
    """Also of what is missing here, by the beginning of its id."""
    walked = ancestry.walk(ws, {*ws.index.parents(), *ws.refs.all_named()})
    damaged = walked.ends & heard.told_of(ws) | ws.index.unreadable()
    found = [each for each in damaged if len(rev) >= _DIGITS and each.startswith(rev)]
    if len(found) > 1:
        raise AmbiguousRevision(f"{rev} could be any of {len(found)} that are damaged", hint="give more digits")
    return found[0] if found else ws.named(rev)


def _changes(ws: Workspace, checkpoint: str, what: str) -> Iterator[Change]:
    yield Change(lost.mark_of(checkpoint), None, _loss(ws, checkpoint, what).text())
    if what == WEIGHTS:
        yield Change(dropped.mark_of(checkpoint), None, "")


def _loss(ws: Workspace, checkpoint: str, what: str) -> Loss:
    if what == WEIGHTS:
        return Loss(checkpoint, ws.parents(checkpoint))
    runs = [record for run, _ in ws.index.makers(checkpoint) if (record := ws.index.record(run))]
    if runs:
        parents = dict.fromkeys(parent for record in runs for parent in record.parents)
        return Loss(checkpoint, tuple(_not_below(ws, checkpoint, parents)))
    return Loss(checkpoint, tuple(sorted(_not_below(ws, checkpoint, _unheld(ws)))), known=False)


def _not_below(ws: Workspace, checkpoint: str, parents: Iterable[str]) -> list[str]:
    """What came from it is none of its ancestors, whatever read it."""
    return [each for each in parents if checkpoint not in with_ancestors(ws, [each])]


def _unheld(ws: Workspace) -> set[str]:
    """The youngest of all that nothing else holds: any of it may be an ancestor."""
    rest = ancestry.walk(ws, used(ws)).rest - ws.index.lost()
    return rest - {parent for each in rest for parent in ws.parents(each)}
