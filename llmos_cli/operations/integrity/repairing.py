"""Repairing: damaged files of checkpoints get good bytes again, from wherever the same content still is what its hash says.

First this workspace: the object store and other checkpoints, where they hold a copy of their own (after a reflink, or where
the disk shares nothing; a hard link is the same damage). Then the remotes. Whole checkpoints that something names, and snapshots of
data, come back from remotes. What runs were given is looked for in other runs too, what they wrote on remotes alone (`repairing_runs.py`). Refs come last (`repairing_refs.py`): what they named may just have come back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmos_cli.core import atomic, manifest, settings, storage
from llmos_cli.core.locks import lock
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.operation import Change
from llmos_cli.core.refs import SNAPSHOTS
from llmos_cli.core.remote import arriving, downloading, layout, receiving
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.snapshots import Snapshot
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, LlmosError, NotFound, NotPlain
from llmos_cli.events import Emit, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.integrity import repairing_runs, resealing, tracking
from llmos_cli.operations.integrity.problem import Problem, Repaired
from llmos_cli.operations.integrity.repairing_refs import repaired
from llmos_cli.operations.strays import move_out
from llmos_cli.operations.summary import SHORT


@dataclass(frozen=True)
class Asked:
    """`places`: the remotes that can be asked for what is damaged here; `silent`: the names of those that could not be; `clear`: sealed
    checkpoints that are damaged -> the name of one that has them in the clear."""

    places: tuple[Remote, ...] = ()
    silent: tuple[str, ...] = ()
    clear: Mapping[str, str] = field(default_factory=dict)


def ask(ws: Workspace, problems: Sequence[Problem], emit: Emit) -> Asked:
    """Every remote. One that cannot be reached today is no reason not to look in the others."""
    places: list[Remote] = []
    silent: list[str] = []
    for each in remotes.settings(ws).values():
        there, why = _opened(ws, each)
        if there is not None:
            places.append(there)
        elif why:
            emit(Note(f"{each.name} was not asked: {why}", "warning"))
            silent.append(each.name)
    return Asked(tuple(places), tuple(silent), resealing.in_the_clear(resealing.suspects(ws, problems), places))


def repair(
    ws: Workspace, problems: Sequence[Problem], asked: Asked, key: bytes | None, emit: Emit
) -> Iterator[Repaired]:
    """Each as it is done. `key`: what is sealed may be sealed anew with it. Manifests come before other files: they say what those should be. Lost checkpoints come after both, for what is
    here of their files is taken from here."""
    places = asked.places
    copy = partial(_good_copy, ws, places=places)
    yield from _storage(ws)
    _forget_damaged_objects(ws)
    resealing.forget_nameless(ws)
    damaged = [(each.checkpoint, each.file) for each in problems if each.file]
    done = [each for each in damaged if each[1] == manifest.NAME and _repair_manifest(ws, each[0], places)]
    yield from (Repaired(_where(checkpoint, name), "a remote") for checkpoint, name in done)
    yield from move_out(ws, damaged)
    for checkpoint, name, entry, path in _files(ws, damaged):
        with ws.stage() as staged:
            if source := _good_copy(ws, entry, staged / "good", places):
                _put(ws, staged / "good", path)
                yield Repaired(_where(checkpoint, name), source)
    yield from resealing.sealed_anew(ws, resealing.suspects(ws, problems), key, copy, emit)
    yield from _checkpoints(ws, {each.lacks for each in problems} - {""}, places, emit)
    yield from _snapshots(ws, sorted({each.snapshot for each in problems} - {""}), places, emit)
    yield from repairing_runs.repaired(ws, problems, copy)
    yield from repairing_runs.repaired_events(ws, problems, copy, places)
    yield from repairing_runs.repaired_ledger(ws)
    yield from repairing_runs.brought_back(ws, problems, places, emit)
    yield from repairing_runs.forgotten(ws) if not asked.silent else ()
    yield from tracking.repaired(ws, places, emit)
    yield from repaired(ws, forget_runs=not asked.silent)
    for each in places:
        each.store.close()


def _storage(ws: Workspace) -> Iterator[Repaired]:
    """First: it says how files are copied here."""
    try:
        storage.read(ws.dot)
    except NotPlain:  # somebody's own, which is told and left
        return
    except Corrupt:
        ws.objects.probe()
        yield Repaired(f".llmos/{storage.NAME}", "what this disk can do")


def repair_settings(ws: Workspace) -> list[Repaired]:
    """Before all else: they say where the remotes are. What was written there by hand since the last operation nobody knows."""
    if not settings.is_missing(ws.root):
        return []
    known = [c.after for each in ws.oplog.operations() for c in each.changes if c.what == settings.NAME and c.after]
    text = known[-1] if known else settings.FIRST
    ws.oplog.apply(f"fsck --repair {settings.NAME}", [Change(settings.NAME, None, text)], emit=ws.emit)
    return [Repaired(settings.NAME, "the log of operations" if known else "what `llmos init` writes there")]


def _opened(ws: Workspace, place: remotes.RemoteSettings) -> tuple[Remote | None, str]:
    """Or why it cannot be asked; neither where nothing was ever sent to it."""
    try:
        there = remotes.opened(ws, place)
        if there.is_begun:
            return there, ""
        return None, f"nothing is at {place.url}, and it was sent something" if remotes.is_missing(ws, there) else ""
    except LlmosError as error:
        return None, error.message


def _checkpoints(ws: Workspace, lost: set[str], places: Sequence[Remote], emit: Emit) -> Iterator[Repaired]:
    """With what is missing of their ancestors too; a manifest alone only where no remote has more."""
    for whole in (True, False):
        for there in places:
            found = [each for each in sorted(lost) if not (ws.checkpoints / each).is_dir() and _has(there, each, whole)]
            try:
                yield from _fetched(ws, there, found, emit) if found else ()
            except LlmosError as error:
                emit(Note(f"not all that is missing came from {there.name}: {error.message}", "warning"))


def _has(there: Remote, checkpoint: str, whole: bool) -> bool:
    return there.has_weights(checkpoint) or there.has_seal(checkpoint) or (not whole and there.has_manifest(checkpoint))


def _fetched(ws: Workspace, there: Remote, checkpoints: Sequence[str], emit: Emit) -> list[Repaired]:
    with remotes.fetching(ws, remotes.named(ws, there.name)):
        coming = receiving.lacking(ws, there, checkpoints, runs=False)
        downloading.receive(ws, there, coming, emit)
        with arriving.staged(ws, coming) as prepared, ws.oplog.locked(ws.emit):
            arriving.publish(ws, prepared, coming)
            if changes := arriving.signed(ws, coming):
                ws.oplog.apply_locked(f"fsck --repair: signatures from {there.name}", changes)
    bare = {each.id for each in coming.lineage} - coming.sealed.keys()
    for each in sorted(bare):
        emit(Note(f"{there.name} has only the manifest of {each[:SHORT]}: its weights count as removed", "warning"))
    return [
        Repaired(_where(each.id, manifest.NAME if each.id in bare else ""), there.name) for each in coming.checkpoints
    ]


def _snapshots(ws: Workspace, damaged: Sequence[str], places: Sequence[Remote], emit: Emit) -> Iterator[Repaired]:
    """Their pieces, as the JSON says that is here or, where that is none, one on a remote."""
    with lock(ws.snapshots.lock, emit=ws.emit) if damaged else contextlib.nullcontext():
        for each in damaged:
            where = f".llmos/{SNAPSHOTS}/{each[:SHORT]}"
            for found, source in _told(ws, each, places, emit):
                yield from _pieces(ws, found, where, places)
                if not ws.snapshots.wrong(found):
                    if source:
                        ws.snapshots.write(found)
                        yield Repaired(where, source)
                    break


def _told(ws: Workspace, snapshot: str, places: Sequence[Remote], emit: Emit) -> Iterator[tuple[Snapshot, str]]:
    """What a snapshot consists of, and which remote says so; the one that is here first, if it is as it was written."""
    with contextlib.suppress(Corrupt, NotFound):
        found = ws.snapshots.read(snapshot)
        if found.is_written(ws.snapshots.path(snapshot).read_bytes()):
            yield found, ""
    for there in places:
        try:
            if there.has_snapshot(snapshot):
                yield there.snapshot(snapshot), there.name
        except LlmosError as error:
            emit(Note(f"{there.name} was not believed: {error.message}", "warning"))


def _pieces(ws: Workspace, snapshot: Snapshot, where: str, places: Sequence[Remote]) -> Iterator[Repaired]:
    for sha256, size in snapshot.pieces.items():
        if not _is(ws.snapshots.piece(sha256), entry := FileEntry(sha256, size)):
            with ws.stage() as staged:
                if source := _good_copy(ws, entry, staged / "good", places):
                    ws.snapshots.store((staged / "good").read_bytes())
                    yield Repaired(f"{where} (piece {sha256[:SHORT]})", source)


def _repair_manifest(ws: Workspace, checkpoint: str, places: Sequence[Remote]) -> bool:
    for there in places:
        if there.has_manifest(checkpoint):
            with ws.stage() as staged:
                there.manifest(checkpoint).write(staged)
                _put(ws, staged / manifest.NAME, ws.checkpoints / checkpoint / manifest.NAME)
            return True
    return False


def _files(ws: Workspace, damaged: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, FileEntry, Path]]:
    """Those that a manifest which can be read lists, and where they are; of one that has just come back, all that are not what it
    says, unless its weights were removed: then those alone that `undo` would miss. Of a sealed checkpoint they are the encrypted ones:
    the remote that has it has those."""
    for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in damaged):
        try:
            sealed = checkpoint in ws.sealed
            tree = ws.sealed.seal(checkpoint).tree if sealed else ws.manifest(checkpoint).tree
        except Corrupt:
            continue
        whole = (checkpoint, manifest.NAME) in damaged and checkpoint not in ws.dropped
        for name, entry in tree.items():
            path = ws.sealed.path(entry.sha256) if sealed else ws.checkpoints / checkpoint / name
            if (checkpoint, name) in damaged or (whole and not _is(path, entry)):
                yield checkpoint, name, entry, path


def _good_copy(ws: Workspace, entry: FileEntry, target: Path, places: Sequence[Remote]) -> str | None:
    """Where `target` was copied from; None where nobody has these bytes."""
    for source, path in _local(ws, entry):
        if _is(path, entry):
            _link_or_copy(ws, path, target)
            return source
    for there in places:
        if there.store.size(name := layout.object_name(entry.sha256)) == entry.size:
            with target.open("wb") as file:
                file.writelines(there.store.chunks(name, 0))
            if _is(target, entry):
                return there.name
            target.unlink()
    return None


def _local(ws: Workspace, entry: FileEntry) -> Iterator[tuple[str, Path]]:
    yield "the object store", ws.objects.path(entry.sha256)
    for each in ws.index.entries():
        try:
            tree = ws.manifest(each.id).tree
        except Corrupt:
            continue
        for name, other in tree.items():
            if other == entry:
                yield f"checkpoint {each.id[:SHORT]}", ws.checkpoints / each.id / name


def _is(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == entry.size and hash_file(path) == entry


def _link_or_copy(ws: Workspace, source: Path, target: Path) -> None:
    if ws.storage == "hardlink":
        with contextlib.suppress(PermissionError):  # another user's
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _put(ws: Workspace, good: Path, final: Path) -> None:
    """Under the lock of the refs, so that the checkpoint is not being removed meanwhile."""
    with ws.oplog.locked(ws.emit), atomic.refusals(final):
        if final.parent.is_dir() or final.parent.parent.is_dir():
            atomic.read_only(good)
            atomic.sync_file(good)
            atomic.make_directory(final.parent)
            good.replace(final)
            atomic.sync_directory(final.parent)


def _forget_damaged_objects(ws: Workspace) -> None:
    """An object only saves space: a damaged one is worth nothing, and the next commit stores it anew."""
    ws.objects.remove([name for name in ws.objects.names() if hash_file(ws.objects.path(name)).sha256 != name])


def _where(checkpoint: str, name: str) -> str:
    return f"checkpoints/{checkpoint[:SHORT]}" + (f"/{name}" if name else "")
