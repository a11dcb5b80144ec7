"""What takes room in a workspace and is no checkpoint that anything names: what gc finds of it, and how each goes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import manifest, signatures, staging
from llmos_cli.core.locks import lock
from llmos_cli.core.snapshots import described, lost, readers
from llmos_cli.core.storing import bare
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LockTimeout
from llmos_cli.operations.pipeline import FOLDER
from llmos_cli.operations.summary import age

_OLD = 30 * 86400.0
"""Seconds after which even a leftover of another host, whose processes cannot be seen from here, is abandoned."""


@dataclass(frozen=True)
class Garbage:
    """`kind`: checkpoint, weights, lost (what is left of one that was given up), object, sealed (file), seal, open (files of a sealed
    checkpoint), snapshot (of data), piece (of one), signature, state, result (of a stage), log (of one), remains (of
    removed weights) or leftover; `called`: what made a checkpoint and who named it last, or what data it is; `size` in bytes."""

    kind: str
    name: str
    reason: str
    size: int
    called: str = ""


def clutter(ws: Workspace, unnamed: set[str], now: float, *, grace: float, reach: float) -> Iterator[Garbage]:
    """`unnamed`: checkpoints that go; `grace`: seconds that what may be needed again is kept; `reach`: the time that `undo` goes back to."""
    yield from _sealed(ws)
    yield from _lost(ws, reach)
    yield from _snapshots(ws, unnamed, now, grace, reach)
    yield from _signatures(ws)
    yield from _states(ws, now, grace)
    yield from _results(ws, now - grace)
    yield from _leftovers(ws, now)


def discard(ws: Workspace, each: Garbage) -> None:
    """What goes one by one; the operation took checkpoints and weights, and what is shared goes when all else has gone."""
    match each.kind:
        case "state":
            shutil.rmtree(ws.root / "runs" / each.name / "state")
        case "signature":
            signatures.path(ws.dot, each.name).unlink(missing_ok=True)
        case "sealed":
            ws.sealed.path(each.name).unlink(missing_ok=True)
        case "seal":
            ws.sealed.forget([each.name])
        case "open":
            ws.dropped.drop(ws.checkpoints / each.name)
        case "snapshot":
            ws.snapshots.remove(each.name)
        case "result" | "log":
            (ws.dot / each.name).unlink(missing_ok=True)
        case "leftover":
            staging.discard(ws.dot / "tmp" / each.name)


def discard_pieces(ws: Workspace, reach: float) -> None:
    """Another time where somebody takes a snapshot."""
    with contextlib.suppress(LockTimeout), lock(ws.snapshots.lock, wait=0):
        for _, path in _of_none(ws, ws.snapshots.unheld(_forgotten(ws, reach))):
            path.unlink(missing_ok=True)


def _of_none(ws: Workspace, unheld: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """None while a snapshot is missing that nobody removed: they may be all that is left of it."""
    found = list(unheld)
    return [] if found and lost(ws) else found


def _sealed(ws: Workspace) -> Iterator[Garbage]:
    """Encrypted files that no seal names, seals of which the checkpoint is gone, and what somebody put beside the manifest of a
    sealed one."""
    for sha256, entry in ws.sealed.unnamed():
        yield Garbage("sealed", sha256, "no seal names it", entry.stat().st_size)
    for name in sorted(ws.sealed.all()):
        if not (ws.checkpoints / name).is_dir():
            yield Garbage("seal", name, "its checkpoint is gone", sum(ws.sealed.sizes(name).values()))
        elif not bare(ws, name):
            length = _bytes(ws.checkpoints / name) - (ws.checkpoints / name / manifest.NAME).stat().st_size
            yield Garbage("open", name, "is sealed, and these files are in the clear", length)


def _lost(ws: Workspace, reach: float) -> Iterator[Garbage]:
    """What is left of checkpoints that were given up before the window of `undo`, and whose manifests nobody can read."""
    for name in sorted(ws.index.lost()):
        if (ws.checkpoints / name).is_dir() and (ws.lost.directory / name).stat().st_mtime < reach:
            yield Garbage("lost", name, "it was given up", _bytes(ws.checkpoints / name))


def _snapshots(ws: Workspace, unnamed: set[str], now: float, grace: float, reach: float) -> Iterator[Garbage]:
    """Of data that has no name and that no checkpoint was made with, and pieces that none holds; not while one is being taken."""
    kept = ws.snapshots
    if not kept.directory.is_dir():
        return
    rehearsing = contextlib.nullcontext() if ws.oplog.rehearsing else None
    with contextlib.suppress(LockTimeout), rehearsing or lock(kept.lock, wait=0):
        gone = _unread(ws, unnamed, now - grace, reach) if kept.ids() else set()
        left = {sha256 for each in kept.all() if each.id not in gone for sha256 in each.pieces} | _forgotten(ws, reach)
        for each in map(kept.read, sorted(gone)):
            own = {sha256: length for sha256, length in each.pieces.items() if sha256 not in left}
            left |= own.keys()  # what two of them share is counted once
            yield Garbage(
                "snapshot", each.id, "no name, and no checkpoint was made with it", sum(own.values()), each.source
            )
        for sha256, path in _of_none(ws, ((sha256, path) for sha256, path in kept.stored() if sha256 not in left)):
            yield Garbage("piece", sha256, "no snapshot holds it", path.stat().st_size)


def _unread(ws: Workspace, unnamed: set[str], old: float, reach: float) -> set[str]:
    read = {snapshot for snapshot, makers in readers(ws).items() if not unnamed.issuperset(makers)}
    held = read | set(ws.snapshots.names().values()) | ws.oplog.named_snapshots(reach)
    return {each for each in ws.snapshots.ids() if each not in held and ws.snapshots.path(each).stat().st_mtime <= old}


def _forgotten(ws: Workspace, reach: float) -> set[str]:
    """Pieces of snapshots that `data rm` removed: `undo` may bring those back, and a run that lives may have begun to read one."""
    since = min([reach, *(record.started for record in ws.runs.alive() if record.operation != "deploy")])
    return {sha256 for text in ws.oplog.snapshots(since) if (each := described(text)) for sha256 in each.pieces}


def _signatures(ws: Workspace) -> Iterator[Garbage]:
    """Of checkpoints that are not here: those of others go with their checkpoint."""
    for name in signatures.signed(ws.dot):
        if not (ws.checkpoints / name).is_dir():
            yield Garbage("signature", name, "its checkpoint is gone", signatures.path(ws.dot, name).stat().st_size)


def _states(ws: Workspace, now: float, grace: float) -> Iterator[Garbage]:
    """What a run would need to be resumed, of runs that nobody resumed."""
    for record in ws.index.undone_records():  # one that is done has removed its own
        state = record.path / "state"
        if record.alive or not state.is_dir() or now - state.stat().st_mtime < grace:
            continue
        yield Garbage(
            "state",
            record.id,
            f"{record.status} {age(record.ended or record.started, now)}, never resumed",
            _bytes(state),
        )


def _results(ws: Workspace, since: float) -> Iterator[Garbage]:
    """What the pipeline remembers; not while it runs, for then a result is about to name what was just written."""
    if not (ws.dot / FOLDER).is_dir():
        return
    from llmos_cli.operations.pipeline import memory, stages  # here: most workspaces are collected without

    rehearsing = contextlib.nullcontext() if ws.oplog.rehearsing else None
    with contextlib.suppress(LockTimeout), rehearsing or lock(ws.dot / "locks" / memory.LOCK, wait=0):
        for path, reason in memory.unused(ws.dot, since, stages.names(ws)):
            yield Garbage("result", str(path.relative_to(ws.dot)), reason, path.stat().st_size)
        for path in memory.old_logs(ws.dot, since):
            yield Garbage("log", str(path.relative_to(ws.dot)), "its stage said it long ago", path.stat().st_size)


def _leftovers(ws: Workspace, now: float) -> Iterator[Garbage]:
    dead = set(staging.leftovers(ws.dot / "tmp"))
    for path in sorted((ws.dot / "tmp").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the living take theirs away at any time
            if path in dead:
                yield Garbage("leftover", path.name, "its process is dead", _bytes(path))
            elif now - (changed := path.lstat().st_mtime) > _OLD:
                yield Garbage("leftover", path.name, f"untouched since {age(changed, now)}", _bytes(path))


def _bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(Path(folder, name)).st_size for folder, _, names in os.walk(path) for name in names)
