"""du: what each checkpoint takes on disk: its own bytes, and those it shares with others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core.index import Entry
from llmos_cli.core.protection import holders
from llmos_cli.core.view import Group, Lines, Table, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.summary import SHORT


@dataclass(frozen=True)
class Usage:
    """Bytes: `own` would be freed by removing it, `shared` are in other checkpoints too, those of a sealed one as they are encrypted;
    `stored` were new on this disk when it was committed (None when its run is gone)."""

    id: str
    names: tuple[str, ...]
    operation: str
    size: int
    own: int
    shared: int
    stored: int | None
    removed: bool
    sealed: bool = False


@dataclass(frozen=True)
class DuResult:
    """Bytes on disk: `checkpoints` with everything shared counted once, `undoable` those that only removed weights hold, which
    `undo` can bring back, `unused` objects that `gc` would remove, `runs`, `data` that was kept, and `cache` (safe to delete).
    `storage`: reflink, hardlink, copy or None."""

    usage: tuple[Usage, ...]
    checkpoints: int
    undoable: int
    unused: int
    runs: int
    cache: int
    storage: str | None
    data: int

    def view(self) -> View:
        rows = [
            [
                each.id[:SHORT],
                each.operation,
                size(each.size),
                size(each.own),
                size(each.shared),
                _stored(each),
                ", ".join(each.names),
            ]
            for each in self.usage
        ]
        table = Table(
            ["checkpoint", "made by", "size", "own", "shared", "newly stored", "names"], rows, align="llrrrrl"
        )
        totals = [
            f"checkpoints {size(self.checkpoints)}, {_how(self.storage)}",
            f"runs {size(self.runs)}",
            *([f"data {size(self.data)} (`llmos data list`)"] if self.data else ()),
            f"cache {size(self.cache)} (safe to delete)",
        ]
        if self.undoable:
            totals.append(
                f"removed weights {size(self.undoable)} (`llmos gc --window now` frees what undo could bring back)"
            )
        if self.unused:
            totals.append(f"unused objects {size(self.unused)} (`llmos gc` removes them)")
        return Group([table if rows else "no checkpoints yet", Lines(totals)])


def du(ws: Workspace) -> DuResult:
    with ws.index.still():
        return _used(ws)


def _used(ws: Workspace) -> DuResult:
    sizes = _Sizes(ws)
    usage = [found for entry in ws.index.entries() if (found := sizes.of(entry)) is not None]
    total = sum(each.own + each.shared for each in usage) if sizes.nothing_shared else sum(sizes.there.values())
    unused = sum(ws.objects.path(name).stat().st_size for name in ws.objects.names() - sizes.held)
    runs, cache, data = (_bytes([folder]) for folder in (ws.root / "runs", ws.cache, ws.snapshots.directory))
    return DuResult(tuple(usage), total, sizes.kept(), unused, runs, cache, ws.storage, data)


class _Sizes:
    """Of the checkpoints that were looked at: `there`, contents and their bytes, and `undoable`, those of removed weights."""

    def __init__(self, ws: Workspace) -> None:
        self.ws, self.nothing_shared = ws, ws.storage == "copy"
        self.names, self.dropped, self.sealed = ws.refs.pointing(), ws.dropped.all(), ws.sealed.all()
        self.count = holders(ws) + ws.sealed.named(without=self.dropped | ws.sealed.unreadable())
        self.trials = ws.index.runs_named("trial")
        self.there: dict[str, int] = {}
        self.undoable: dict[str, int] = {}

    def of(self, entry: Entry) -> Usage | None:
        """None where its manifest cannot be read, which `fsck` tells."""
        try:
            tree = self.ws.manifest(entry.id).tree
        except Corrupt:
            return None
        dropped, sealed = entry.id in self.dropped, entry.id in self.sealed
        files = {file.sha256: file.size for file in tree.values()}
        if sealed:
            files = self.ws.sealed.sizes(entry.id)
        here = {} if dropped else files
        if dropped and (sealed or self.ws.dropped.whole(self.ws.root, entry.id)):
            self.undoable |= files
        self.there |= here
        own = sum(length for sha256, length in here.items() if self.nothing_shared or self.count[sha256] == 1)
        makers = self.ws.index.makers(entry.id)
        operation = "trial" if makers and makers[0][0] in self.trials else entry.operation
        return Usage(
            entry.id,
            tuple(self.names.get(entry.id, ())),
            f"{operation} {entry.label}".strip(),
            entry.size,
            own,
            sum(here.values()) - own,
            makers[0][1] if makers else None,
            dropped,
            sealed and not dropped,
        )

    @property
    def held(self) -> set[str]:
        return {*self.count, *self.undoable}

    def kept(self) -> int:
        """Bytes of removed weights that nothing else has."""
        return sum(n for sha256, n in self.undoable.items() if self.nothing_shared or sha256 not in self.there)


def _bytes(folders: Iterable[Path]) -> int:
    return sum(
        os.lstat(Path(folder, name)).st_size for top in folders for folder, _, names in os.walk(top) for name in names
    )


def _stored(usage: Usage) -> str:
    if usage.removed:
        return "removed"
    if usage.sealed:
        return "sealed"
    return "—" if usage.stored is None else size(usage.stored)


def _how(storage: str | None) -> str:
    how = {
        "reflink": "shared by reflinks",
        "hardlink": "shared by hard links",
        "copy": "nothing shared on this file system",
    }
    return how.get(storage or "", "nothing stored yet")
