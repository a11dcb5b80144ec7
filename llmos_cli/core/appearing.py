"""A workspace that is brought from elsewhere is made beside its place, under a name that tells whose it is, and appears when it is whole.

    .NAME.cloning/     what a kill leaves; the same command finds it again and goes on

Into a folder that is there already, and may be the one that a shell stands in, it is moved entry by entry, `.llmos` last: before
that there is no workspace. The file `whole` says that a move began, so that it is finished.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import UsageError

_WHOLE = "whole"


def place_for(directory: Path, verb: str, doing: str) -> tuple[Path, Path]:
    """Where the workspace will be, and where it is made until then; UsageError where something else is in its place."""
    root = Workspace.vacant(directory)
    ready = root.with_name(f".{root.name}.{doing}")
    if root.is_dir() and any(root.iterdir()) and not (ready / _WHOLE).exists():
        raise UsageError(f"{root} has something in it", hint=f"{verb} into a folder that is empty or not there yet")
    return root, ready


def finish(ready: Path, root: Path) -> bool:
    """Go on with a move that was cut off; False where none began."""
    if not (ready / _WHOLE).exists():
        return False
    for folder in (root, ready):  # who moved the last entry may not have lived to sync it
        atomic.sync_directory(folder)
    _move(ready, root)
    return True


def appear(ready: Path, root: Path) -> None:
    """What is ready gets its place, durably: also the folders that a process which was killed had made and not synced."""
    with atomic.refusals(root):
        atomic.sync_folders(ready)
        if root.is_dir():
            atomic.write_bytes(ready / _WHOLE, b"", scratch=ready / DOT / "tmp")
            _move(ready, root)
        else:
            ready.rename(root)
            atomic.sync_directory(root.parent)


def _move(ready: Path, root: Path) -> None:
    names = [path.name for path in ready.iterdir() if path.name != _WHOLE]
    for name in sorted(names, key=lambda name: (name == DOT, name)):
        (ready / name).rename(root / name)
        atomic.sync_directory(root)
        atomic.sync_directory(ready)
    (ready / _WHOLE).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        ready.rmdir()
    atomic.sync_directory(ready.parent)
