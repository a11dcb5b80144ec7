"""What fsck says of whole files that are gone, or stand in one another's place, and that no hash tells: a run's ref, a signature."""

from __future__ import annotations

from collections.abc import Iterator

from llmos_cli.core import lost, manifest, signatures
from llmos_cli.core.listing import folders
from llmos_cli.core.refs import RUNS
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.integrity.problem import Problem, readable


def refs_of_runs(ws: Workspace) -> Iterator[Problem]:
    for ref, named, saved in lost_refs_of_runs(ws):
        what = f"is missing, and runs/{ref.removeprefix(RUNS)} saved {apart(saved, folders(ws.checkpoints))}"
        if named is not None:
            what = f"names {apart(named, [saved])}, and the run saved {apart(saved, [named])}"
        yield Problem(ref, what, saved)


def lost_refs_of_runs(ws: Workspace) -> Iterator[tuple[str, str | None, str]]:
    """Those that are not what their runs say, what they name and what that is. A run that says that it saved a checkpoint which is here has
    a ref that names it: that comes first. What a run saved at last it may not have lived to say, unless it says that it is done."""
    for run, (saved, done) in _saved(ws).items():
        named, corrupt = readable(ws, RUNS + run)
        if not corrupt and (named is None or (named != saved and done)):
            yield RUNS + run, named, saved


def _saved(ws: Workspace) -> dict[str, tuple[str, bool]]:
    """Run -> what it saved last, which is here, and whether it was done then. What `gc` collected may have come back without its run's ref,
    and what a cut-off fetch is about to bring too."""
    from llmos_cli.core.remote.downloading import is_under_way  # here: most workspaces are checked without

    if is_under_way(ws.dot):
        return {}
    here = set(folders(ws.checkpoints)) - ws.oplog.collected()
    return {each.id: (each.checkpoint, each.status == "done") for each in ws.index.records() if each.checkpoint in here}


def lost_signatures(ws: Workspace) -> dict[str, str]:
    """Checkpoints that are here, and the signatures that the log of operations says they have and that are gone, or others now."""
    texts = signatures.logged(ws.oplog.path)
    here = {signed: text for signed, text in texts.items() if text and (ws.checkpoints / signed).is_dir()}
    return {signed: text for signed, text in here.items() if _text(ws, signed) != text}


def _text(ws: Workspace, signed: str) -> str | None:
    try:
        return signatures.read(ws.dot, signed)
    except Corrupt:
        return None


def wrong_signature(ws: Workspace, signed: str) -> str:
    """What can be told without a key; empty where it is a signature, and of the checkpoint that it is named after."""
    path = ws.checkpoints / signed / manifest.NAME
    try:
        bundle = signatures.parse(signatures.read(ws.dot, signed) or "", "it")
    except Corrupt as error:
        return error.message
    if path.is_file() and not bundle.is_of(path.read_bytes()):
        return "is the signature of another checkpoint"
    return ""


def marks_of_loss(ws: Workspace) -> Iterator[Problem]:
    for checkpoint in lost_marks(ws):
        yield Problem(lost.mark_of(checkpoint), "is not what was written when that checkpoint was given up")


def lost_marks(ws: Workspace) -> dict[str, str]:
    """Checkpoints that were given up and are not here, and whose marks are not what the log of operations says, which that is."""
    found = ws.oplog.given_up()
    return {
        each: text for each, text in found.items() if not (ws.checkpoints / each).is_dir() and not ws.lost.find(each)
    }


def strange_signatures(ws: Workspace) -> Iterator[Problem]:
    """What no key is needed to tell; where one is nothing at all, it has been told by those who read it."""
    for signed in lost_signatures(ws):
        where = str((path := signatures.path(ws.dot, signed)).relative_to(ws.root))
        if not path.exists():
            yield Problem(where, "is missing, and the log of operations says that it is there", signed)
        elif not wrong_signature(ws, signed):
            yield Problem(where, "is not what was put there, by the log of operations", signed)
