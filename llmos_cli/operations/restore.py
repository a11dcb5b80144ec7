"""restore: a workspace as a backup has it, on a machine that has nothing of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from llmos_cli.core import appearing, atomic, staging
from llmos_cli.core.listing import folders
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.refs import HEAD
from llmos_cli.core.remote import arriving, backups, downloading, receiving
from llmos_cli.core.remote.backups import Backup
from llmos_cli.core.view import Lines, View, size
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import LlmosError, NotFound
from llmos_cli.events import Emit, ignore
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.remote import ORIGIN


@dataclass(frozen=True)
class RestoreResult:
    """`root` is relative to the current folder; `checkpoints` with and without weights."""

    root: str
    url: str
    backup: str
    workspace: str
    host: str
    checkpoints: int
    files: int
    bytes: int
    dry_run: bool

    def view(self) -> View:
        verb = "would restore" if self.dry_run else "restored"
        what = f"{counted(self.checkpoints, 'checkpoint')} and {counted(self.files, 'other file')} ({size(self.bytes)})"
        return Lines([f"{verb} {self.workspace} as it was on {self.host} at {self.backup}: {what} in {self.root}"])


def restore(
    url: str,
    directory: Path,
    *,
    at: str | None = None,
    encrypted: bool = False,
    key_file: str = "",
    dry_run: bool = False,
    emit: Emit = ignore,
) -> RestoreResult:
    """`at`: the beginning of a backup's name; the last one when omitted."""
    root, ready = appearing.place_for(directory, "restore", "restoring")
    place = remotes.described(Workspace(root), ORIGIN, url, encrypted=encrypted, key_file=key_file)
    there = remotes.opened(_rehearsing(root), place)
    there.must_be_begun()
    wanted = _chosen(backups.listed(there), url, at)
    files, executable = backups.files_of(there, wanted)
    if not dry_run and appearing.finish(ready, root):
        return _told(root, url, wanted, len(files), 0, dry_run=False)
    ws = Workspace(ready) if not dry_run else _rehearsing(root)
    if not (dry_run or (ws.dot / HEAD).exists()):
        ws = Workspace.create(ready)
    with remotes.fetching(ws, place), nullcontext() if dry_run else _going_on(ready):
        coming = receiving.beside(receiving.lacking(ws, there, wanted.checkpoints, runs=False), there, files)
        if not dry_run:
            downloading.receive(ws, there, coming, emit)
            _bring(ws, coming, files, executable)
            ws.oplog.note(f"restore {wanted.backup} from {url}")
    there.store.close()
    if not dry_run:
        _appear(ready, root)
    return _told(root, url, wanted, len(files), coming.bytes, dry_run=dry_run)


@contextmanager
def _going_on(ready: Path) -> Iterator[None]:
    """Of a restore that fails, what came is kept, which its error says; nothing where nothing came."""
    try:
        yield
    except LlmosError as error:
        if any(
            any(each.iterdir())
            for each in (ready / DOT / "tmp" / downloading.FOLDER, ready / "checkpoints")
            if each.is_dir()
        ):
            error.hint += f"; what came is kept in {os.path.relpath(ready)}, and the same `llmos restore` goes on there"
        else:
            staging.discard(ready)
        raise


def _told(root: Path, url: str, wanted: Backup, files: int, bytes: int, *, dry_run: bool) -> RestoreResult:
    place, count = os.path.relpath(root), len(wanted.checkpoints)
    return RestoreResult(place, url, wanted.backup, wanted.workspace, wanted.host, count, files, bytes, dry_run)


def _rehearsing(root: Path) -> Workspace:
    ws = Workspace(root)
    ws.oplog.rehearsing = True
    return ws


def _chosen(known: Sequence[Backup], url: str, at: str | None) -> Backup:
    found = [each for each in known if each.backup.startswith(at or "")]
    if not known:
        raise NotFound(
            f"there is no backup in {url}", hint="`llmos backup` makes one; `llmos clone` brings what was pushed"
        )
    if not found:
        raise NotFound(
            f"no backup there begins with {at}", hint=f"there are {', '.join(each.backup for each in known[-8:])}"
        )
    return found[-1]


def _bring(
    ws: Workspace, coming: receiving.Receiving, files: Mapping[str, FileEntry], executable: Container[str]
) -> None:
    downloads = ws.dot / "tmp" / downloading.FOLDER
    with arriving.staged(ws, coming) as prepared:
        with ws.oplog.locked(ws.emit):
            arriving.publish(ws, prepared, replace(coming, runs=()))
        for name, entry in files.items():
            unfinished = ws.dot / "tmp" / "restored"
            shutil.copyfile(downloads / entry.sha256, unfinished)
            if name in executable:
                unfinished.chmod(0o777 & ~atomic.umask())
            atomic.sync_file(unfinished)
            atomic.make_directory((ws.root / name).parent)
            unfinished.replace(ws.root / name)
        for folder in {(ws.root / name).parent for name in files}:
            atomic.sync_directory(folder)


def _appear(ready: Path, root: Path) -> None:
    """No backup has the folder of a run that was alive then; one that had ended before, and went on, is in the ledger."""
    ws = Workspace(ready)
    ws.ledger.forget(ws.ledger.all().keys() - set(folders(ready / "runs")))
    for leftover in ("index.sqlite", "identity"):
        (ready / DOT / leftover).unlink(missing_ok=True)
    appearing.appear(ready, root)
