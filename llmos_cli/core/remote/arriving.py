"""Arriving: what was downloaded becomes checkpoints, runs and snapshots of data of this workspace, whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, storing
from llmos_cli.core.ledger import Entry
from llmos_cli.core.locks import lock
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.objects import best_mode, hash_file
from llmos_cli.core.operation import Change
from llmos_cli.core.records import EVENTS
from llmos_cli.core.refs import RUNS
from llmos_cli.core.remote import hostile, vouching
from llmos_cli.core.remote.downloading import FOLDER
from llmos_cli.core.remote.receiving import ReceivedRun, Receiving, at_hand
from llmos_cli.core.seal import Seal
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import Conflict, Corrupt

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


@contextlib.contextmanager
def staged(ws: Workspace, receiving: Receiving) -> Iterator[list[storing.Prepared]]:
    """All new checkpoints, finished but for their places; the downloads are gone afterwards."""
    folder = ws.dot / "tmp" / FOLDER
    for run in receiving.runs:
        _check_run(folder, run)
    with ws.stage() as stage:
        yield [_staged(ws, each, stage / each.id, folder, each in receiving.whole) for each in receiving.checkpoints]
    shutil.rmtree(folder, ignore_errors=True)


def _check_run(folder: Path, run: ReceivedRun) -> None:
    events = run.tree.get(EVENTS)
    if events is None:
        raise Corrupt(f"run {run.id} on the remote has no {EVENTS}", hint="ask who can write there")
    hostile.check_events(folder / events.sha256, run.id)


def _staged(ws: Workspace, found: Manifest, target: Path, downloads: Path, weights: bool) -> storing.Prepared:
    atomic.make_directory(target)
    stored = 0
    if weights:
        local = at_hand(ws, {entry.sha256: entry.size for entry in found.tree.values()})
        for name, entry in found.tree.items():
            here = local.get(entry.sha256)
            _place(downloads / entry.sha256, target / name) if here is None else _lend(here, target / name, entry)
        stored = ws.objects.adopt(target, found.tree, emit=ws.emit)
    found.write(target)
    return storing.Prepared(target, Checkpoint(found.id, ws.checkpoints / found.id, found), stored)


def _lend(source: Path, target: Path, entry: FileEntry) -> None:
    """Bytes that are here: hashed, so that what a disk damaged does not spread."""
    if hash_file(source) != entry:
        raise Corrupt(f"{source.name} here is not what was saved", hint="`llmos fsck` tells what else is affected")
    _place(source, target)


def _place(source: Path, target: Path) -> None:
    atomic.make_directory(target.parent)
    if best_mode(source, target) == "copy":
        shutil.copyfile(source, target)


def publish(ws: Workspace, prepared: Sequence[storing.Prepared], receiving: Receiving) -> None:
    """Give all of it its place. The refs must be locked until one of them names it, so that nobody collects it."""
    bare = {each.id for each in receiving.lineage}
    for loss in receiving.lost:
        ws.lost.keep(loss, scratch=ws.dot / "tmp")
    for each in prepared:
        storing.make_way(ws, each.checkpoint)
        if seal := receiving.sealed.get(each.checkpoint.id):
            _publish_sealed(ws, each, seal)
        elif each.checkpoint.id in bare:
            if each.checkpoint.path.exists():
                continue  # another fetch brought it, perhaps with its weights
            ws.dropped.mark_bare(each.checkpoint.id)
            atomic.publish(each.staged, each.checkpoint.path)
            ws.lost.restore(each.checkpoint.id)
        else:
            storing.publish(ws, each)


def signed(ws: Workspace, receiving: Receiving) -> list[Change]:
    """The signatures that came, some in the place of those that are here. Changes of an operation: so the log knows what was put there,
    and what is put there by hand is found out, and not sent on."""
    changes = (vouching.taken(ws, *each) for each in receiving.signatures.items())
    return [each for each in changes if each.before != each.after]


def _publish_sealed(ws: Workspace, prepared: storing.Prepared, seal: Seal) -> None:
    """The encrypted files, the seal, and then what it seals. What is here with its weights stays as it is."""
    if prepared.checkpoint.path.exists() and ws.closed(seal.checkpoint) != "removed":
        return
    arrived = [e.sha256 for e in seal.tree.values() if (ws.dot / "tmp" / FOLDER / e.sha256).exists()]
    for each in arrived:
        atomic.read_only(ws.dot / "tmp" / FOLDER / each)
    ws.sealed.keep(ws.dot / "tmp" / FOLDER, arrived)
    if ws.sealed.lacks(seal):
        raise Conflict(
            f"files of {seal.checkpoint[:12]} that were here were removed meanwhile", hint="try again: they come, too"
        )
    ws.sealed.expect(seal)
    ws.sealed.close(seal.checkpoint)
    ws.dropped.restore(seal.checkpoint)
    atomic.publish(prepared.staged, prepared.checkpoint.path)
    ws.lost.restore(seal.checkpoint)


def publish_snapshots(ws: Workspace, receiving: Receiving) -> None:
    """Pieces first; Corrupt, and no snapshot, where they are not the rows whose fingerprint it is."""
    downloads = ws.dot / "tmp" / FOLDER
    with lock(ws.snapshots.lock, emit=ws.emit) if receiving.snapshots else contextlib.nullcontext():
        for each in receiving.snapshots:
            for sha256 in each.pieces:
                if (downloads / sha256).exists():
                    ws.snapshots.store((downloads / sha256).read_bytes())
            if what := ws.snapshots.wrong(each):
                raise Corrupt(f"snapshot {each.id[:12]} on the remote is not what it says: {what}", hint=hostile.HINT)
            ws.snapshots.write(each)


def _arrived(run: ReceivedRun) -> Entry:
    events = run.tree[EVENTS]
    return Entry(run.id, events.size, events.sha256, own=False)


def publish_runs(ws: Workspace, receiving: Receiving) -> None:
    """With their folders, and before them the refs by which checkpoints are found by their runs: what is cut off in between
    comes again, as its folder is not there yet. That they are not this workspace's own is said before they are here."""
    downloads = ws.dot / "tmp" / FOLDER
    ws.ledger.add([_arrived(run) for run in receiving.runs])
    for run in receiving.runs:
        if run.checkpoint:
            ws.refs.write(RUNS + run.id, run.checkpoint)
        with ws.stage() as folder:
            for name, entry in run.tree.items():
                atomic.make_directory((folder / name).parent)
                shutil.copyfile(downloads / entry.sha256, folder / name)
                atomic.sync_file(folder / name)
            atomic.publish(folder, ws.root / "runs" / run.id)
