"""fsck: hash every byte again, follow every ref, and say what is damaged and whom it hurts; on request, put back what is elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from llmos_cli.core import heard
from llmos_cli.core.listing import folders
from llmos_cli.core.refs import ID
from llmos_cli.core.view import apart, short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations.integrity import giving_up_files
from llmos_cli.operations.integrity.begun_anew import begin_anew, logs_in
from llmos_cli.operations.integrity.examination import examined
from llmos_cli.operations.integrity.giving_up import accept, lost_ones, what_is_lost
from llmos_cli.operations.integrity.problem import Problem, Repaired
from llmos_cli.operations.integrity.result import FsckResult
from llmos_cli.operations.integrity.sealed import key_at_hand, way_back
from llmos_cli.operations.integrity.sharing_again import share_again
from llmos_cli.operations.integrity.strangers import in_the_way


def fsck(
    ws: Workspace,
    *,
    repair: bool = False,
    accept_loss: Sequence[str] = (),
    key_file: Path | None = None,
    emit: Emit = ignore,
) -> FsckResult:
    """`key_file`: of what is sealed, to look inside; without it LLMOS_KEY, where that is set. `accept_loss`: revisions to be given up,
    unless repairing brings them back: what somebody has is no loss."""
    if odd := tuple(in_the_way(ws)):
        return FsckResult(0, 0, 0, odd)
    logs = logs_in(ws, accept_loss)
    files = giving_up_files.named(ws, accept_loss)
    lost = lost_ones(ws, [each for each in accept_loss if each not in {*logs, *files}])
    found = examined(ws, key_file, emit)
    if not ((found.problems or found.unshared) and (repair or lost or logs or files)):
        return found
    begin_anew(ws, logs)  # first: refs go back to where a log says that they were
    repaired: list[Repaired] = []
    with _telling(repaired, emit):
        clear, silent = _put_back(ws, found, repaired, key_file, emit) if repair or lost or files else ({}, ())
        _must_be_nowhere(ws, lost, files, clear, silent)
        accept(ws, lost)
        giving_up_files.accept(ws, files)
        again = examined(ws, key_file, emit)
    rest = list(_lost(ws, again.problems))
    gone = tuple(each for each in rest if each not in clear)
    return replace(
        again,
        index_differed=found.index_differed,
        index_made_anew=found.index_made_anew,
        repaired=tuple(repaired),
        lost=gone,
        lost_called=apart(gone[0], chain(folders(ws.checkpoints), rest)) if gone else "",
        clear={each: clear[each] for each in rest if each in clear},
    )


def _lost(ws: Workspace, problems: Sequence[Problem]) -> Iterator[str]:
    hurt = {each.lacks or each.checkpoint for each in problems} - {""}
    lost = [each for each in sorted(hurt) if ID.fullmatch(each) and what_is_lost(ws, each)]
    known = heard.told_of(ws) if lost else set()
    return (each for each in lost if heard.is_here(ws, each) or each in known)


@contextmanager
def _telling(repaired: Sequence[Repaired], emit: Emit) -> Iterator[None]:
    """Whatever ends the block early: what was repaired by then is told."""
    try:
        yield
    except BaseException:
        for each in repaired:
            emit(Note(each.told))
        raise


def _must_be_nowhere(
    ws: Workspace, lost: Sequence[str], files: Sequence[str], clear: Mapping[str, str], silent: Sequence[str]
) -> None:
    """What a remote has is no loss, and what it may have is not given up because nobody could ask it."""
    for each in (each for each in lost if each in clear and what_is_lost(ws, each)):
        raise Conflict(f"{clear[each]} has {short(each)} in the clear: it is no loss", hint=way_back(each))
    if silent and (any(what_is_lost(ws, each) for each in lost) or giving_up_files.still_wrong(ws, files)):
        names = " and ".join(silent)
        raise Conflict(
            f"{names} could not be asked whether what would be given up is there: nothing was",
            hint=f"try again once it can be reached; `llmos remote rm {silent[0]}` if it is gone for good",
        )


def _put_back(
    ws: Workspace, found: FsckResult, repaired: list[Repaired], key_file: Path | None, emit: Emit
) -> tuple[Mapping[str, str], Sequence[str]]:
    """Sealed checkpoints that were damaged -> who has them in the clear, and the names of remotes that could not be asked."""
    from llmos_cli.operations.integrity import repairing  # here: it knows remotes, and is seldom needed

    whole = found.unshared.keys() - {each.checkpoint for each in found.problems}
    asked = repairing.Asked()
    try:
        if found.problems:
            repaired += repairing.repair_settings(ws)
            asked = repairing.ask(ws, found.problems, emit)
            key = key_at_hand(key_file) if found.sealed else None
            repaired.extend(repairing.repair(ws, found.problems, asked, key, emit))
        repaired += share_again(ws, whole, emit)
    finally:
        if repaired:
            ws.oplog.note(f"fsck --repair: {', '.join(each.where for each in repaired)}")
    return asked.clear, asked.silent
