"""Storing a staged directory as a checkpoint, and checking one that is about to be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, manifest
from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import files_below, hash_file, hash_files
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import Corrupt, LlmosError, NotFound

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_FSCK = "`llmos fsck` tells what else is affected"


def store(ws: Workspace, staged: Path, made: Made) -> tuple[Checkpoint, int]:
    """Make a staged directory a checkpoint that no ref names yet, and say how many bytes were new on this disk.

    `Run.commit` is the way to call it. The same content and making give the same checkpoint again.
    """
    tree = {path.relative_to(staged).as_posix(): entry for path, entry in _hashed(staged).items()}
    written = manifest.manifest(tree, made)
    final = Checkpoint(written.id, ws.checkpoints / written.id, written)
    stored = ws.objects.adopt(staged, tree)
    written.write(staged)
    if not atomic.publish(staged, final.path):
        stored = _again(ws, staged, final, stored)
    ws.index.note_file_times(final.id, _times(final))
    return final, stored


def _hashed(staged: Path) -> dict[Path, manifest.FileEntry]:
    names = files_below(staged)
    if manifest.NAME in names:
        raise LlmosError(f"a checkpoint's own {manifest.NAME} is written by llmos", hint="give that file another name")
    return hash_files(staged / name for name in names)


def _again(ws: Workspace, staged: Path, final: Checkpoint, stored: int) -> int:
    """The checkpoint exists. Where its weights were removed, it gets them back."""
    if final.id not in ws.dropped:
        return 0
    aside = staged.with_name(staged.name + "_old")
    final.path.rename(aside)
    atomic.publish(staged, final.path)
    shutil.rmtree(aside)
    ws.dropped.restore(final.id)
    return stored


def verify(ws: Workspace, checkpoint: Checkpoint) -> None:
    """Sizes and times of all files, and the hash of those whose time has changed since they were last known to be good."""
    if checkpoint.id in ws.dropped:
        raise NotFound(
            f"the weights of {checkpoint.id[:12]} were removed",
            hint=f"`llmos show {checkpoint.id[:12]}` tells how it was made",
        )
    known = ws.index.file_times(checkpoint.id)
    for name in checkpoint.manifest.tree:
        _verify_file(checkpoint, name, known.get(name))
    if (times := _times(checkpoint)) != known:
        ws.index.note_file_times(checkpoint.id, times)


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
