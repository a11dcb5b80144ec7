"""Files of checkpoints that share their bytes with no object: an equal one would be stored again, and `du` would take it for shared.

That is no damage, for a checkpoint is whole without: a copy of the workspace may be so, or one whose objects somebody removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.fsck_problem import Repaired

Inode = tuple[int, int]
"""Of a file: its device and its number there."""


def unshared(storage: str | None, files: Iterable[tuple[FileEntry, Inode]], objects: Mapping[str, Inode]) -> int:
    """Bytes; 0 where the disk shares nothing. Clones share theirs, and are files of their own."""
    if storage == "reflink":
        return sum(entry.size for entry, _ in files if entry.sha256 not in objects)
    if storage == "hardlink":
        return sum(entry.size for entry, inode in files if objects.get(entry.sha256) != inode)
    return 0


def share_again(ws: Workspace, checkpoints: Iterable[str]) -> list[Repaired]:
    """Those of which every file was seen to be what its manifest says."""
    done = 0
    with ws.oplog.locked(ws.emit):
        for each in checkpoints:
            with suppress(Corrupt, FileNotFoundError):  # it went, or was altered, since it was looked at
                ws.objects.adopt(ws.checkpoints / each, ws.manifest(each).tree, emit=ws.emit)
                done += 1
    return [Repaired(".llmos/objects", f"the files of {counted(done, 'checkpoint')}")] if done else []
