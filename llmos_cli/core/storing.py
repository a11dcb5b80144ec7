"""Storing a staged directory as a checkpoint, and checking one that is about to be read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, manifest
from llmos_cli.core.manifest import Made
from llmos_cli.core.names import wrong
from llmos_cli.core.objects import files_below, hash_file, hash_files
from llmos_cli.core.redaction import hidden
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import Corrupt, LlmosError, NotFound, Untrusted
from llmos_cli.events import Emit, ignore

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_FSCK = "`llmos fsck` tells what else is affected"


@dataclass(frozen=True)
class Prepared:
    """A staged directory that lacks nothing but its name; `stored`: bytes of it that are new on this disk."""

    staged: Path
    checkpoint: Checkpoint
    stored: int


def prepare(ws: Workspace, staged: Path, made: Made, *, emit: Emit = ignore) -> Prepared:
    """The long part of a commit: hash all files, share their bytes with equal ones, write the manifest. No lock is needed."""
    names = _names(staged)
    shared = _shared(ws, staged, names, made.parents)
    hashed = hash_files(staged / name for name in names if name not in shared)
    tree = shared | {path.relative_to(staged).as_posix(): entry for path, entry in hashed.items()}
    written = manifest.manifest(tree, replace(made, config=hidden(made.config), data=hidden(made.data)))
    stored = ws.objects.adopt(staged, tree, shared, emit=emit)
    written.write(staged)
    return Prepared(staged, Checkpoint(written.id, ws.checkpoints / written.id, written), stored)


def publish(ws: Workspace, prepared: Prepared) -> int:
    """The short part: give it its place. The refs must be locked until one of them names it, so that nobody collects it.

    The same content made the same way is the same checkpoint again. Returns the bytes that are new on this disk.
    """
    final, stored = prepared.checkpoint, prepared.stored
    make_way(ws, final)
    if not final.path.is_dir():
        ws.dropped.restore(final.id)  # a mark that outlived its checkpoint, as a seal may
        ws.sealed.forget([final.id])
    if not atomic.publish(prepared.staged, final.path):
        stored = _again(ws, prepared) if final.id in ws.dropped else 0
    ws.lost.restore(final.id)
    if not ws.closed(final.id):  # a sealed one stays so, whoever makes it again
        ws.index.note_file_times(final.id, _times(final))
    return stored


def make_way(ws: Workspace, checkpoint: Checkpoint) -> None:
    """What is left of one that was given up, and that nobody can read, goes where it comes back whole."""
    if checkpoint.id in ws.lost and checkpoint.path.is_dir() and checkpoint.id in ws.index.lost():
        from llmos_cli.core.removal import take_away

        take_away(checkpoint.path, ws.dot)


def _names(staged: Path) -> list[str]:
    names = files_below(staged)
    if manifest.NAME in names:
        raise LlmosError(f"a checkpoint's own {manifest.NAME} is written by llmos", hint="give that file another name")
    if why := wrong(names):
        raise LlmosError(f"the new checkpoint {why}", hint="give that file another name: it could not be pushed")
    return names


def _shared(ws: Workspace, staged: Path, names: Iterable[str], parents: Iterable[str]) -> dict[str, manifest.FileEntry]:
    """Those that are a file of a parent under a second name (the same inode, not equal times): what it holds its manifest says,
    and where a disk has damaged it since, `fsck` finds both by that."""
    known: dict[tuple[int, int], manifest.FileEntry] = {}
    for parent in (each for each in parents if (ws.checkpoints / each).is_dir()):
        for name, entry in ws.manifest(parent).tree.items():
            with contextlib.suppress(FileNotFoundError):
                known[_inode(ws.checkpoints / parent / name)] = entry
    found = {name: known.get(_inode(staged / name)) for name in names}
    return {name: entry for name, entry in found.items() if entry and (staged / name).lstat().st_size == entry.size}


def _inode(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _again(ws: Workspace, prepared: Prepared) -> int:
    """Its weights were removed, and here they are again: beside the manifest, which stayed, and counting once the mark is gone."""
    final = prepared.checkpoint
    with atomic.refusals(final.path):
        for name in final.manifest.tree:
            atomic.make_directory((final.path / name).parent)
            (prepared.staged / name).replace(final.path / name)
            atomic.sync_directory((final.path / name).parent)
    ws.sealed.forget([final.id])  # it may have been removed while it was sealed
    ws.dropped.restore(final.id)
    return prepared.stored


def verify(ws: Workspace, checkpoint: Checkpoint) -> None:
    """Sizes and times of all files, and the hash of those whose time has changed since they were last known to be good."""
    if checkpoint.id in ws.dropped:
        raise removed(ws, checkpoint.id)
    if checkpoint.id in ws.sealed:
        raise sealed(checkpoint.id)
    known = ws.index.file_times(checkpoint.id)
    for name in checkpoint.manifest.tree:
        _verify_file(checkpoint, name, known.get(name))
    if (times := _times(checkpoint)) != known:
        ws.index.note_file_times(checkpoint.id, times)


def bare(ws: Workspace, checkpoint: str) -> bool:
    """Whether nothing lies beside the manifest."""
    return files_below(ws.checkpoints / checkpoint) == [manifest.NAME]


def removed(ws: Workspace, checkpoint: str) -> NotFound:
    """What is said where weights would be read that an operation removed, or that never came."""
    short = checkpoint[:12]
    there = checkpoint in ws.sealed or ws.dropped.whole(ws.root, checkpoint)
    back = (
        "`llmos op log` has what removed them, `llmos undo ID` brings them back"
        if there
        else f"`llmos fetch --weights {short}` asks a remote"
    )
    return NotFound(f"the weights of {short} were removed", hint=f"{back}; `llmos show {short}` tells how it was made")


def sealed(checkpoint: str) -> Untrusted:
    """What is said where a sealed checkpoint would be read."""
    short = checkpoint[:12]
    return Untrusted(f"checkpoint {short} is sealed", hint=f"`llmos unseal {short} --key-file FILE` opens it")


def verify_content(checkpoint: Checkpoint) -> None:
    """Hash every file: what is handed out must be what was saved."""
    for path, entry in hash_files(checkpoint.path / name for name in checkpoint.manifest.tree).items():
        name = path.relative_to(checkpoint.path).as_posix()
        if entry != checkpoint.manifest.tree[name]:
            raise Corrupt(f"{name} of checkpoint {checkpoint.id[:12]} is not what was saved", hint=_FSCK)


def _verify_file(checkpoint: Checkpoint, name: str, known: int | None) -> None:
    path, entry = checkpoint.path / name, checkpoint.manifest.tree[name]
    try:
        status = path.stat()
    except FileNotFoundError:
        raise Corrupt(f"checkpoint {checkpoint.id[:12]} has lost its file {name}", hint=_FSCK) from None
    if status.st_size != entry.size:
        raise Corrupt(
            f"{name} of checkpoint {checkpoint.id[:12]} has {status.st_size:,} bytes instead of {entry.size:,}",
            hint=_FSCK,
        )
    # Copying a workspace changes the times too, so a changed time alone proves nothing: the hash decides.
    if known is not None and known != status.st_mtime_ns and hash_file(path) != entry:
        raise Corrupt(f"{name} of checkpoint {checkpoint.id[:12]} is not what it was when it was saved", hint=_FSCK)


def _times(checkpoint: Checkpoint) -> dict[str, int]:
    return {name: (checkpoint.path / name).stat().st_mtime_ns for name in checkpoint.manifest.tree}
