"""Refs get back what the log of operations left them at, all of them in one operation, which `undo` takes back.

Those of runs and of remotes are not in the log: the run's record says what it committed, and the next fetch where a remote's are.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmos_cli.core import atomic, continuity, lost, signatures
from llmos_cli.core.dropped import mark_of
from llmos_cli.core.listing import what_else
from llmos_cli.core.operation import Change
from llmos_cli.core.protection import has_all, marked_by_nobody
from llmos_cli.core.refs import DATA, FIRST, HEAD, MOVED, REMOTES, RUNS, SYMBOLIC
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.begun_anew import gone
from llmos_cli.operations.integrity.problem import Repaired
from llmos_cli.operations.integrity.refs import is_gone
from llmos_cli.operations.integrity.whole import lost_marks, lost_refs_of_runs, lost_signatures

_LOG = "the log of operations"


def repaired(ws: Workspace, *, forget_runs: bool) -> list[Repaired]:
    """What came back, and from where. A ref whose checkpoint is missing stays as it is; one of a run that is missing goes with
    `forget_runs`."""
    with ws.oplog.locked(ws.emit):
        marks = [*_put_right(ws), *_lost_marks(ws)]  # first: what takes one away says what it said
        changes = [*_changes(ws), *_marks(ws)]
        if changes:
            ws.oplog.apply_locked(f"fsck --repair {' '.join(change.name for change in changes)}", changes)
        return [
            *marks,
            *(Repaired(change.what, _LOG) for change in changes),
            *_unlogged(ws, forget_runs),
            *_bytes(ws),
            *_signatures(ws),
        ]


def _changes(ws: Workspace) -> Iterator[Change]:
    operations = list(ws.oplog.operations())
    left = {ref: value for ref, (value, _) in ws.oplog.left(operations).items()}
    # Or refs may be where a lost operation left them.
    whole = not (gone(ws) or continuity.missing(operations, ws.oplog.audit))
    if HEAD not in left and (_is_nonsense(ws, HEAD) or not continuity.is_old_clone(ws.oplog.audit)):
        left[HEAD] = FIRST
    other = {ref for ref, at in left.items() if ws.refs.senseless(ref) or (whole and ws.refs.read(ref) != at)}
    leaving = {ref for ref in other if left[ref] is None}
    alike = ws.refs.alike((ref for ref in other - leaving if not (ws.dot / ref).is_file()), leaving)
    for ref in sorted(other):
        blocked = ref not in leaving and (ref in alike or ws.refs.in_the_way(ref, leaving))
        if _is_here(ws, ref, left[ref]) and not blocked:
            yield Change(ref, ws.oplog.said(ref), left[ref])


def _put_right(ws: Workspace) -> Iterator[Repaired]:
    """Of weights that no operation removed, and that are not here, the mark says that they never came."""
    removed = ws.oplog.without_weights()
    for each in ws.dropped.senseless():
        ws.dropped.put_right(each, bare=each not in removed and not has_all(ws, each))
        yield Repaired(mark_of(each), _LOG)


def _lost_marks(ws: Workspace) -> Iterator[Repaired]:
    for checkpoint, text in lost_marks(ws).items():
        path = ws.root / lost.mark_of(checkpoint)
        if not what_else(path):  # somebody's own, which is told and left
            ws.lost.restore(checkpoint)
            ws.index.lost()  # the index looks at names alone: it must see one go and come
            atomic.write_text(path, text, scratch=ws.dot / "tmp")
            yield Repaired(lost.mark_of(checkpoint), _LOG)


def _marks(ws: Workspace) -> Iterator[Change]:
    for each in map(mark_of, sorted(marked_by_nobody(ws))):
        yield Change(each, (ws.root / each).read_text(errors="replace"), None)


def _is_nonsense(ws: Workspace, ref: str) -> bool:
    return ws.refs.senseless(ref) or not _is_here(ws, ref, ws.refs.read(ref))


def _is_here(ws: Workspace, ref: str, value: str | None) -> bool:
    if value is None or value.startswith(SYMBOLIC):
        return True
    return value in ws.snapshots if ref.startswith(DATA) else (ws.checkpoints / value).is_dir()


def _unlogged(ws: Workspace, forget_runs: bool) -> Iterator[Repaired]:
    for run in list(ws.refs.names(RUNS)):
        if forget_runs and is_gone(ws, run):
            ws.refs.write(RUNS + run, None)
            yield Repaired(RUNS + run, "the runs that are here: this one is not, and its ref was removed")
        elif ws.refs.senseless(RUNS + run):
            record = ws.index.record(run)
            committed = record.checkpoint if record and (ws.checkpoints / record.checkpoint).is_dir() else ""
            ws.refs.write(RUNS + run, committed or None)
            yield Repaired(RUNS + run, f"what runs/{run} says")
    made = ws.oplog.left()
    for ref in [prefix + name for prefix in MOVED for name in ws.refs.names(prefix)]:
        if ref not in made and ws.refs.senseless(ref):  # nobody of llmos wrote it, and it says nothing
            ws.refs.write(ref, None)
            yield Repaired(ref, f"{_LOG}, which never made it")
    for ref, _, saved in lost_refs_of_runs(ws):
        ws.refs.write(ref, saved)
        yield Repaired(ref, f"what runs/{ref.removeprefix(RUNS)} says")
    for name in list(ws.refs.names(REMOTES)):
        if ws.refs.senseless(REMOTES + name):
            ws.refs.write(REMOTES + name, None)
            yield Repaired(REMOTES + name, "the remote, when it is fetched from next")


def _bytes(ws: Workspace) -> Iterator[Repaired]:
    """Blanks around a value that is right."""
    for ref in [HEAD, *(prefix + name for prefix in (*MOVED, RUNS, REMOTES) for name in ws.refs.names(prefix))]:
        if (
            not ws.refs.senseless(ref)
            and (value := ws.refs.read(ref))
            and (ws.dot / ref).read_bytes() != f"{value}\n".encode()
        ):
            ws.refs.write(ref, value)
            yield Repaired(ref, "its own value")


def _signatures(ws: Workspace) -> Iterator[Repaired]:
    """The log keeps what was written."""
    for signed, text in lost_signatures(ws).items():
        path = signatures.path(ws.dot, signed)
        atomic.write_text(path, text, scratch=ws.dot / "tmp")
        yield Repaired(str(path.relative_to(ws.root)), _LOG)
