"""Repairing: damaged files of checkpoints get good bytes again, from wherever the same content still is what its hash says.

First this workspace: the object store and other checkpoints, where they hold a copy of their own (after a reflink, or where
the disk shares nothing; a hard link is the same damage). Then the remotes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmos_cli.core import atomic, manifest
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.events import Emit, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.fsck import Repaired
from llmos_cli.operations.summary import SHORT


def repair(ws: Workspace, damaged: Sequence[tuple[str, str]], emit: Emit) -> list[Repaired]:
    """`damaged`: checkpoints and names of their files. Manifests come first: they say what the other files should be."""
    places = [there for place in remotes.settings(ws).values() if (there := _opened(ws, place, emit)) is not None]
    done = [each for each in damaged if each[1] == manifest.NAME and _repair_manifest(ws, each[0], places)]
    found = [Repaired(_where(checkpoint, name), "a remote") for checkpoint, name in done]
    for checkpoint, name, entry, path in _files(ws, damaged):
        with ws.stage() as staged:
            if source := _good_copy(ws, entry, staged / "good", places):
                _put(ws, staged / "good", path)
                found.append(Repaired(_where(checkpoint, name), source))
    _forget_damaged_objects(ws)
    for each in places:
        each.store.close()
    return found


def _opened(ws: Workspace, place: remotes.RemoteSettings, emit: Emit) -> Remote | None:
    """A remote that cannot be reached today is no reason not to look in the others."""
    try:
        there = remotes.opened(ws, place)
        return there if there.is_begun else None
    except LlmosError as error:
        emit(Note(f"{place.name} was not asked: {error.message}", "warning"))
        return None


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
    says. Of a sealed checkpoint they are the encrypted ones: the remote that has it has those."""
    for checkpoint in dict.fromkeys(checkpoint for checkpoint, _ in damaged):
        try:
            sealed = checkpoint in ws.sealed
            tree = ws.sealed.seal(checkpoint).tree if sealed else ws.manifest(checkpoint).tree
        except Corrupt:
            continue
        whole = (checkpoint, manifest.NAME) in damaged
        for name, entry in tree.items() if checkpoint not in ws.dropped else ():
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
    return f"checkpoints/{checkpoint[:SHORT]}/{name}"
