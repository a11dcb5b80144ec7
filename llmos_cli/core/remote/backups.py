"""Backups: what a workspace was at one moment, beside the branches of a remote.

    backups/<time>.json    {"backup", "workspace", "host", "checkpoints", "tree": {"sha256", "size"}}

Checkpoints are sent as a push would send them, those that nothing names too. All other files (refs, the operation log, runs with
the states that can be resumed, configs, whatever lies beside them in the workspace's own folder, and what the pipeline declares of
folders there) are listed in one tree, which is an object itself, as they are. So a second backup costs what changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import ancestry, heard
from llmos_cli.core.listing import what_else
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.names import wrong
from llmos_cli.core.objects import files_below, hash_files
from llmos_cli.core.processes import host
from llmos_cli.core.refs import RUNS, SNAPSHOTS
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.workspace import DOT
from llmos_cli.errors import Conflict, Corrupt, UsageError

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_OWN = ("objects", "sealed", "tmp", "locks", "cache", "crash", "identity", "storage", "pending.json")
"""Of `.llmos/`: made anew wherever a workspace stands, or of no use elsewhere."""
_FOLDERS = (DOT, "checkpoints", "configs", "runs")
_INDEX = "index.sqlite"
_NAME = re.compile(r"\d{8}-\d{6}-\d{6}")
TREE = "tree.json"


@dataclass(frozen=True)
class Backup:
    """`tree`: the object that lists all files but those of checkpoints."""

    backup: str
    workspace: str
    host: str
    checkpoints: tuple[str, ...]
    tree: FileEntry


def copied(ws: Workspace, folder: Path, declared: Set[str]) -> dict[str, Path]:
    """All files that a backup has beside checkpoints, `declared` ones in folders of the user's own among them: name -> where its bytes
    stay as they are now. What may change at any moment is copied to `folder`, under the lock of the refs, so that refs and the log of
    operations agree."""
    with ws.oplog.locked(ws.emit):
        files = {name: ws.root / name for name in sorted({*_beside(ws), *_taken(declared)})}
        _check_names(files)
        # What is kept of data stays what its name says, as checkpoints do.
        for name in (
            name for name in files if name.startswith(f"{DOT}/") and not name.startswith(f"{DOT}/{SNAPSHOTS}/")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files[name] = Path(shutil.copyfile(ws.root / name, folder / name))
    return files


def _check_names(files: Iterable[str]) -> None:
    """What a restore would refuse is not backed up."""
    if why := _not_kept(files) or wrong(files):
        raise UsageError(
            f"nobody could restore this workspace: it {why}",
            hint="rename one: a branch by `llmos branch -m`, a tag by `llmos tag NEW OLD` and `llmos tag -d OLD`, a file by `mv`",
        )


def _taken(declared: Iterable[str]) -> set[str]:
    """None of what has its own way, or of a folder that some tool may act on (`.git/hooks`)."""
    return {name for name in declared if name.partition("/")[0] not in _FOLDERS and not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")[:-1])


def _beside(ws: Workspace) -> Iterator[str]:
    alive = {f"runs/{record.id}" for record in ws.runs.alive()}
    yield from (entry.name for entry in os.scandir(ws.root) if entry.is_file(follow_symlinks=False))
    yield from (f"configs/{name}" for name in _plain(ws.configs))
    for name in _plain(ws.root / "runs"):
        if f"runs/{name.partition('/')[0]}" not in alive:
            yield f"runs/{name}"
    for name in _plain(ws.dot):
        run = name.removeprefix(RUNS)
        if _is_kept(name) and f"runs/{run}" not in alive:
            yield f"{DOT}/{name}"


def left_out(ws: Workspace, declared: Set[str]) -> tuple[str, ...]:
    """What stands in the workspace's folder and no backup has: folders of the user's own with more in them than is `declared`, links and
    the like, and runs that are alive."""
    taken = _taken(declared)
    others = [
        entry
        for entry in os.scandir(ws.root)
        if entry.name not in _FOLDERS and not entry.is_file(follow_symlinks=False)
    ]
    names = [entry.name for entry in others if not entry.is_dir(follow_symlinks=False)]
    folders = [entry.name for entry in others if entry.is_dir(follow_symlinks=False)]
    names += [f"{name}/" for name in folders if not _is_all(ws.root / name, taken)]
    for folder in (ws.configs, ws.root / "runs", ws.dot):
        odd = set(files_below(folder)) - set(_plain(folder)) if folder.is_dir() else set()
        names += [f"{folder.name}/{name}" for name in odd if folder != ws.dot or _is_kept(name)]
    return tuple(sorted([*names, *(f"runs/{record.id}/" for record in ws.runs.alive())]))


def _is_all(folder: Path, taken: Set[str]) -> bool:
    """Only where something of it is taken all of it is looked through."""
    return any(name.startswith(f"{folder.name}/") for name in taken) and all(
        f"{folder.name}/{name}" in taken for name in files_below(folder)
    )


def _plain(folder: Path) -> list[str]:
    return [name for name in files_below(folder) if not what_else(folder / name)] if folder.is_dir() else []


def _is_kept(name: str) -> bool:
    """Of what is in `.llmos/`."""
    return name.partition("/")[0] not in _OWN and not name.startswith(_INDEX)


def checkpoints(ws: Workspace, remote: Remote) -> tuple[str, ...]:
    """All of them, with those that only the remote still has. Corrupt where one that a ref names, or that another came from, is
    neither here nor there: such a backup could not be restored."""
    with ws.oplog.locked(ws.emit):
        heard.check(ws, undone="nothing was backed up")
        walked = ancestry.walk(ws, {*ws.index.parents(), *ws.refs.all_named()})
    lost = walked.ends | ws.index.unreadable()
    if gone := [each for each in lost if not remote.has_manifest(each)]:
        raise ancestry.broken(ws, gone, undone="nothing was backed up")
    given_up = {each for each in ws.index.lost() if not remote.has_manifest(each)}
    return tuple(sorted((walked.line | lost) - given_up))


def described(
    ws: Workspace, files: Mapping[str, Path], folder: Path, checkpoints: tuple[str, ...]
) -> tuple[Backup, dict[str, FileEntry]]:
    """The backup, and the entries of its files; their tree is written to `folder`."""
    hashes = hash_files(files.values())
    entries = {name: hashes[path] for name, path in sorted(files.items())}
    told = {name: asdict(entry) | _mode(files[name]) for name, entry in entries.items()}
    (folder / TREE).write_text(json.dumps(told))
    ((_, tree),) = hash_files([folder / TREE]).items()
    now = time.time()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now * 1e6) % 1_000_000:06d}"
    return Backup(name, ws.name, host(), checkpoints, tree), entries


def _mode(path: Path) -> dict[str, bool]:
    return {"executable": True} if os.access(path, os.X_OK) else {}


def note(remote: Remote, backup: Backup) -> None:
    """The last thing that is written: from now on it is there."""
    if not remote.store.create(layout.backup_name(backup.backup), layout.text(asdict(backup))):
        raise Conflict(f"there is a backup {backup.backup} on {remote.name} already", hint="try again")


def listed(remote: Remote) -> list[Backup]:
    """Oldest first."""
    found = [read(text) for text in remote.all_in(layout.BACKUPS)]
    return sorted(found, key=lambda backup: backup.backup)


def read(text: bytes) -> Backup:
    """Corrupt where no backup can be so."""
    try:
        value = layout.parse(text)
        tree = FileEntry(str(value["tree"]["sha256"]), int(value["tree"]["size"]))
        checkpoints = tuple(str(each) for each in value["checkpoints"])
        backup = Backup(str(value["backup"]), str(value["workspace"]), str(value["host"]), checkpoints, tree)
    except hostile.UNREADABLE as error:
        raise Corrupt("a backup on the remote makes no sense", hint=hostile.HINT) from error
    hostile.check_tree({TREE: tree}, "a backup")
    if not _NAME.fullmatch(backup.backup) or not all(map(hostile.is_id, checkpoints)):
        raise Corrupt(f"a backup on the remote is called {backup.backup[:80]!r}", hint=hostile.HINT)
    return backup


def files_of(remote: Remote, backup: Backup) -> tuple[dict[str, FileEntry], set[str]]:
    """What it has beside checkpoints, and which of that can be executed; names that no backup makes are refused."""
    text = b"".join(remote.object(backup.tree))
    try:
        told = json.loads(text)
        tree = {str(name): FileEntry(str(e["sha256"]), int(e["size"])) for name, e in told.items()}
        executable = {str(name) for name, e in told.items() if e.get("executable") is True}
    except hostile.UNREADABLE as error:
        raise Corrupt(f"the tree of backup {backup.backup} makes no sense", hint=hostile.HINT) from error
    hostile.check_tree(tree, f"backup {backup.backup}")
    if why := _not_kept(tree):
        raise Corrupt(f"backup {backup.backup} {why}", hint=hostile.HINT)
    return tree, executable


def _not_kept(files: Iterable[str]) -> str | None:
    """What no backup has, in words: checkpoints are sent as such, and other things have their place where the workspace stands."""
    for name in files:
        top, _, below = name.casefold().partition("/")
        own = top == DOT and (below.partition("/")[0] in _OWN or below.startswith(_INDEX))
        if own or top == "checkpoints" or (top not in _FOLDERS and _is_hidden(name)):
            return f"has a file {name[:80]!r}, which no backup has"
    return None
