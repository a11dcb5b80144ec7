"""What fsck says of refs: that they name what is there, to the byte, and that the log of operations left them where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from llmos_cli.core import continuity, heard
from llmos_cli.core.listing import folders
from llmos_cli.core.operation import Operation, told
from llmos_cli.core.refs import DATA, FIRST, HEAD, HEADS, MOVED, REMOTES, RUNS, SYMBOLIC, TAGS
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.integrity.begun_anew import gone
from llmos_cli.operations.integrity.problem import Problem, more, readable


def refs(ws: Workspace) -> Iterator[Problem]:
    yield from _of(ws, HEAD, lambda: ws.refs.head().checkpoint)
    astray = {each.ref for each in heard.astray(ws) if each.now}  # told by `tracking`
    listed = (prefix + name for prefix in (*MOVED, RUNS, REMOTES) for name in sorted(ws.refs.names(prefix)))
    for ref in (each for each in listed if each not in astray):
        yield from _of(ws, ref, lambda ref=ref: ws.refs.read(ref))  # type: ignore[misc]


def _of(ws: Workspace, ref: str, read: Callable[[], str | None]) -> Iterator[Problem]:
    try:
        named, odd = read(), _bytes_of(ref, ws)
    except Corrupt as error:
        yield Problem(ref, error.message)
        return
    data = ref.startswith(DATA)
    if named and not (named in ws.snapshots if data else (ws.checkpoints / named).is_dir() or named in ws.index.lost()):
        missing = Problem(ref, f"names {apart(named, _others(ws, data))}, which is missing")
        yield replace(missing, snapshot=named) if data else replace(missing, lacks=named)
    if odd:
        yield Problem(ref, odd)
    if ref.startswith(RUNS) and is_gone(ws, ref.removeprefix(RUNS)):
        yield Problem(ref, "its run is missing")


def _others(ws: Workspace, data: bool) -> Iterable[str]:
    """What is there, and might be taken for it."""
    return ws.snapshots.ids() if data else folders(ws.checkpoints)


def is_gone(ws: Workspace, run: str) -> bool:
    """Of a run that a fetch brings the ref comes first: what was cut off in between is there when it goes on."""
    from llmos_cli.core.remote.downloading import is_under_way  # here: most workspaces are checked without

    return not (ws.root / "runs" / run).is_dir() and not is_under_way(ws.dot)


def _bytes_of(ref: str, ws: Workspace) -> str | None:
    """Blanks around what a ref says are read over, but nobody of ours wrote them."""
    value, path = ws.refs.read(ref), ws.dot / ref
    return None if value is None or path.read_bytes() == f"{value}\n".encode() else "has bytes too many or too few"


def operations(ws: Workspace) -> Iterator[Problem]:
    """Every move of HEAD, a branch, a tag, a stage's name or that of data is an operation: what says otherwise was edited behind our
    back."""
    if what := gone(ws):  # that each of its operations is missing, and made none of the refs, says no more
        yield Problem(".llmos/operations.jsonl", f"is missing, and {what}")
        return
    logged = list(ws.oplog.operations())
    last = ws.oplog.left(logged)
    for ref, (value, name) in sorted(last.items()):
        now, corrupt = readable(ws, ref)
        if now != value and not corrupt:
            other = (ws.refs.in_the_way(ref) or ws.refs.alike([ref]).get(ref)) if now is None else None
            stands = f"; {other} stands in its way" if other else ""
            left = f"the last operation on it (`{name}`) left it at {told(value, now)}{stands}"
            yield Problem(ref, f"is at {told(now, value)}, and {left}")
    yield from _made_by_none(ws, set(last), bool(continuity.missing(logged, ws.oplog.audit)))
    yield from _head_by_hand(ws, set(last))
    yield from _edited(ws, logged)
    if unread := ws.oplog.unreadable():
        yield Problem(".llmos/operations.jsonl", f"line {unread[0]} is no operation" + more(unread))


def _edited(ws: Workspace, logged: Sequence[Operation]) -> Iterator[Problem]:
    """Of the log itself: of operations that follow upon one another none was lost, and none says something else now."""
    for flaw in continuity.flaws(ws.oplog, ws.oplog.audit, logged):
        yield Problem(flaw.ref or ".llmos/operations.jsonl", flaw.what, flaw.value)


def _made_by_none(ws: Workspace, moved: set[str], some_are_lost: bool) -> Iterator[Problem]:
    """Where operations are missing from the log, one of those may have: then nobody is told to take a good name away."""
    known = moved | {_cloned_to(ws)}
    for ref in (prefix + name for prefix in MOVED for name in sorted(ws.refs.names(prefix))):
        if ref not in known and not readable(ws, ref)[1]:
            made_by_none = f"no operation made it{_way_out(ref)}"
            yield Problem(ref, "no operation that is still in the log made it" if some_are_lost else made_by_none)


def _way_out(ref: str) -> str:
    """Taking it away is the user's to decide: it may be all that names a checkpoint."""
    for verb, prefix in (("branch", HEADS), ("tag", TAGS)):
        if ref.startswith(prefix):
            return f": `llmos {verb} -d {ref.removeprefix(prefix)}` takes it away"
    return ""


def _cloned_to(ws: Workspace) -> str:
    """The branch that HEAD was on at first, of a workspace that was cloned long ago; empty in all others."""
    if not continuity.is_old_clone(ws.oplog.audit):
        return ""
    moves = (change for operation in ws.oplog.operations() for change in operation.changes if change.what == HEAD)
    first = next(moves, None)
    return ((first.before if first else readable(ws, HEAD)[0]) or "").removeprefix(SYMBOLIC)


def _head_by_hand(ws: Workspace, moved: set[str]) -> Iterator[Problem]:
    """A HEAD that no operation has moved is on the branch it was made on."""
    ref = (readable(ws, HEAD)[0] or "").removeprefix(SYMBOLIC)
    if HEAD in moved or f"{SYMBOLIC}{ref}" == FIRST:
        return
    if ref.startswith(HEADS) and ref not in moved and readable(ws, ref)[0] is None:
        yield Problem(HEAD, f"is on the branch {ref.removeprefix(HEADS)}, which never was")
    elif (change := ws.oplog.by_hand(HEAD)) is not None:
        yield Problem(HEAD, f"is at {told(change.after)}, and no operation moved it from {told(change.before)}")
