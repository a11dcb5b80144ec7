"""du: what each checkpoint takes on disk: its own bytes, and those it shares with others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    count = holders(ws)
    nothing_shared = ws.storage == "copy"
    names, dropped, sealed = ws.refs.pointing(), ws.dropped.all(), ws.sealed.all()
    count += ws.sealed.named(without=dropped)
    trials = ws.index.runs_named("trial")
    usage, contents = [], {}
    undoable: dict[str, int] = {}
    for entry in ws.index.entries():
        try:
            tree = ws.manifest(entry.id).tree
        except Corrupt:
            continue  # `fsck` tells
        tree = ws.sealed.seal(entry.id).tree if entry.id in sealed else tree
        there = {file.sha256: file.size for file in tree.values()}
        here = {} if entry.id in dropped else there
        whole = entry.id in sealed or (entry.id in dropped and ws.dropped.whole(ws.root, entry.id))
        undoable |= there if entry.id in dropped and whole else {}
        own = sum(length for sha256, length in here.items() if nothing_shared or count[sha256] == 1)
        makers = ws.index.makers(entry.id)
        operation = "trial" if makers and makers[0][0] in trials else entry.operation
        contents.update(here)
        usage.append(
            Usage(
                entry.id,
                tuple(names.get(entry.id, ())),
                f"{operation} {entry.label}".strip(),
                entry.size,
                own,
                sum(here.values()) - own,
                makers[0][1] if makers else None,
                entry.id in dropped,
                entry.id in sealed - dropped,
            )
        )
    total = sum(each.own + each.shared for each in usage) if nothing_shared else sum(contents.values())
    held = {*count, *undoable}
    unused = sum(ws.objects.path(name).stat().st_size for name in ws.objects.names() - held)
    kept = sum(length for sha256, length in undoable.items() if nothing_shared or sha256 not in contents)
    runs, cache, data = (_bytes([folder]) for folder in (ws.root / "runs", ws.cache, ws.snapshots.directory))
    return DuResult(tuple(usage), total, kept, unused, runs, cache, ws.storage, data)


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
