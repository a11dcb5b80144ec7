"""Files of checkpoints that share their bytes with no object: an equal one would be stored again, and `du` would take it for shared.

That is no damage, for a checkpoint is whole without: a copy of the workspace may be so, or one whose objects somebody removed. Where
several users work in one, each may link what is theirs (fs.protected_hardlinks): of the rest it is told who may.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import may_link
from llmos_cli.core.processes import user_name
from llmos_cli.core.view import size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit, Note
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.integrity.problem import Repaired

Stored = Mapping[str, os.stat_result]
"""Of the objects that there are, by name."""


@dataclass(frozen=True)
class File:
    """Of a checkpoint, as it is on the disk."""

    checkpoint: str
    path: Path
    entry: FileEntry
    status: os.stat_result

    def shares(self, storage: str | None, stored: Stored) -> bool:
        """Clones share their bytes with an object, and are files of their own; True where the disk shares nothing at all."""
        of = stored.get(self.entry.sha256)
        if storage == "hardlink":
            return of is not None and os.path.samestat(self.status, of)
        return storage != "reflink" or of is not None


@dataclass(frozen=True)
class Denied:
    """`size`: bytes that the system does not let this user link; `owners`: names of the users whom it would, each their own."""

    size: int = 0
    owners: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        return f"{', '.join(self.owners)} (each their own)" if len(self.owners) > 1 else "".join(self.owners)


def denied(storage: str | None, files: Iterable[File], stored: Stored) -> Denied:
    """What would be linked is the object or, where there is none, any of the files with its bytes. To clone one needs but to read."""
    sources = defaultdict(list)
    for file in files if storage == "hardlink" else ():
        sources[file.entry].append(file.status)
    for entry in sources:
        if (of := stored.get(entry.sha256)) is not None:
            sources[entry] = [of] * len(sources[entry])
    left = {entry: of for entry, of in sources.items() if not any(map(may_link, of))}
    owners = {user_name(each.st_uid) for of in left.values() for each in of}
    return Denied(sum(entry.size * len(of) for entry, of in left.items()), tuple(sorted(owners)))


def share_again(ws: Workspace, checkpoints: Iterable[str], emit: Emit) -> list[Repaired]:
    """Those of which every file was seen to be what its manifest says. What the system denies is passed over."""
    with ws.oplog.locked(ws.emit):
        stored = {name: ws.objects.path(name).stat() for name in ws.objects.names()}
        files = [file for each in checkpoints for file in _files(ws, each) if not file.shares(ws.storage, stored)]
        files.sort(key=lambda file: not may_link(file.status))  # what one may link is what equal ones then share
        shared = ws.objects.share_again([(file.path, file.entry) for file in files]) if files else set()
    left = [file for file in files if file.path not in shared]
    _tell(left, denied(ws.storage, left, stored), emit)
    done = {file.checkpoint for file in files if file.path in shared}
    return [Repaired(".llmos/objects", f"the files of {counted(len(done), 'checkpoint')}")] if done else []


def _files(ws: Workspace, checkpoint: str) -> Iterator[File]:
    with suppress(Corrupt, FileNotFoundError):  # it went, or was altered, since it was looked at
        for name, entry in ws.manifest(checkpoint).tree.items():
            path = ws.checkpoints / checkpoint / name
            yield File(checkpoint, path, entry, path.lstat())


def _tell(left: Sequence[File], expected: Denied, emit: Emit) -> None:
    """A server or a container may deny more than the owners of files say."""
    if more := sum(file.entry.size for file in left) - expected.size:
        emit(Note(f"the system would not let {size(more)} be linked with .llmos/objects", "warning"))
