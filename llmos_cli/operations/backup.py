"""backup: all of a workspace as it is now, to a remote: from a shell, or every night from cron."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from llmos_cli.core.remote import backups, sending
from llmos_cli.core.view import Lines, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.pipeline.declared import declared


@dataclass(frozen=True)
class BackupResult:
    """`checkpoints` and `files` (of them and beside them) are all that the backup has; `sent` files and `bytes` were new there.
    `left_out`: folders of the user's own with more in them than the pipeline declares, links and runs that are alive, which it has not."""

    remote: str
    url: str
    backup: str
    checkpoints: int
    files: int
    sent: int
    bytes: int
    dry_run: bool
    left_out: tuple[str, ...] = ()

    def view(self) -> View:
        verb = "would back up" if self.dry_run else "backed up"
        has = f"{verb} {counted(self.checkpoints, 'checkpoint')} and {counted(self.files, 'other file')} to {self.remote} ({self.url})"
        new = f"{counted(self.sent, 'file')} ({size(self.bytes)}) {'would be' if self.dry_run else 'were'} new there"
        without = [
            f"left out (folders of your own but for what the pipeline declares, links, runs that are alive): {', '.join(self.left_out)}"
        ]
        return Lines([has, new, *(without if self.left_out else [])])


def backup(ws: Workspace, remote: str | None = None, *, dry_run: bool = False, emit: Emit = ignore) -> BackupResult:
    place = remotes.named(ws, remote)
    still = nullcontext() if ws.oplog.rehearsing else ws.snapshots.still(ws.emit)
    with remotes.turn(ws, place), still, ws.stage() as folder:
        there = remotes.opened(ws, place)
        remotes.must_not_be_missing(ws, there)
        also = _declared(ws, emit)
        files, left_out = backups.copied(ws, folder, also), backups.left_out(ws, also)
        made, entries = backups.described(ws, files, folder, backups.checkpoints(ws, there))
        beside = {entry.sha256: (files[name], entry.size) for name, entry in entries.items()}
        beside[made.tree.sha256] = (folder / backups.TREE, made.tree.size)
        missing = sending.everything(ws, there, made.checkpoints, beside)
        if not dry_run:
            sending.send(there, missing, emit)
            backups.note(there, made)
            ws.oplog.note(f"backup {made.backup} to {place.name}")
        there.store.close()
    return BackupResult(
        place.name,
        place.url,
        made.backup,
        len(made.checkpoints),
        len(entries),
        len(missing.objects),
        missing.bytes,
        dry_run,
        left_out,
    )


def _declared(ws: Workspace, emit: Emit) -> set[str]:
    """What its pipeline reads and writes. One that makes no sense is no reason to have no backup."""
    try:
        return declared(ws)
    except LlmosError as error:
        emit(
            Note(f"nothing that the pipeline declares in folders of your own is backed up: {error.message}", "warning")
        )
        return set()
