"""Strays: files in a checkpoint's folder that are none of its. Repairing moves them out, and never removes one.

They go to `.llmos/strays/<id>/`, under a name like theirs that any disk can have and that nothing there has.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmos_cli.core import atomic, manifest
from llmos_cli.core.names import folded, plain
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.integrity.problem import Repaired
from llmos_cli.operations.summary import SHORT

FOLDER = ".llmos/strays"


def move_out(ws: Workspace, damaged: Iterable[tuple[str, str]]) -> Iterator[Repaired]:
    """Of checkpoints and names in them those that no manifest lists."""
    with ws.oplog.locked(ws.emit):
        for checkpoint, name in damaged:
            path = ws.checkpoints / checkpoint / name
            if _is_stray(ws, checkpoint, name) and _can_be_moved(path):
                target = _free(ws.root / FOLDER / checkpoint, plain(name))
                _move(path, target, top=ws.checkpoints / checkpoint)
                where = f"checkpoints/{checkpoint[:SHORT]}/{name}"
                yield Repaired(where, moved=str(target.relative_to(ws.root)))


def _is_stray(ws: Workspace, checkpoint: str, name: str) -> bool:
    try:
        return name != manifest.NAME and name not in ws.manifest(checkpoint).tree
    except Corrupt:
        return False  # nobody knows what belongs to it


def _can_be_moved(path: Path) -> bool:
    """Not a pipe or a device: whoever copies what is in `.llmos` would wait for it for ever."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _free(folder: Path, name: str) -> Path:
    taken = {folded(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
    free, number = name, 1
    while folded(free) in taken:
        number += 1
        free = f"{name}.{number}"
    return folder / free


def _move(path: Path, target: Path, *, top: Path) -> None:
    """With what is left of its folders, where nothing else is in them."""
    with atomic.refusals(path):
        atomic.make_directory(target.parent)
        if not path.is_symlink():
            atomic.sync_file(path)
        path.replace(target)
        atomic.sync_directory(target.parent)
        folder = path.parent
        while folder != top and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
        atomic.sync_directory(folder)
