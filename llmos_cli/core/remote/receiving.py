"""Receiving: what a remote has and this workspace lacks, looked at first, then downloaded, and brought in whole.

Everything is read and judged before a byte is written. Objects stream into `.llmos/tmp/fetch/`, hashed as they come; one that
was cut off goes on where it stopped, and one that arrived is not fetched again. Then all checkpoints appear, parents first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, signatures, storing, view
from llmos_cli.core.listing import plainly
from llmos_cli.core.locks import lock
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.objects import best_mode, hash_file
from llmos_cli.core.operation import Change
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import RUNS
from llmos_cli.core.remote import hostile, layout, vouching
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import CHUNK
from llmos_cli.core.seal import Seal
from llmos_cli.core.snapshots import Snapshot, read_by
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import Conflict, Corrupt, LlmosError
from llmos_cli.events import Emit

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

FOLDER = "fetch"


def is_under_way(dot: Path) -> bool:
    """Whether a fetch is at it, or was cut off and will go on: what it brings is not all here."""
    return (dot / "tmp" / FOLDER).is_dir()


@dataclass(frozen=True)
class ReceivedRun:
    id: str
    checkpoint: str
    tree: Mapping[str, FileEntry]


@dataclass(frozen=True)
class Receiving:
    """What is to come: `whole` with weights, `lineage` manifests alone, or with encrypted files if they are `sealed` (by id);
    parents first. `objects`: SHA-256 -> bytes, those that
    are nowhere here."""

    whole: tuple[Manifest, ...]
    lineage: tuple[Manifest, ...]
    runs: tuple[ReceivedRun, ...]
    objects: Mapping[str, int]
    signatures: Mapping[str, str]
    """Id -> bundle, of what has none here or an older one."""
    sealed: Mapping[str, Seal] = field(default_factory=dict)
    snapshots: tuple[Snapshot, ...] = ()
    lost: tuple[Loss, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(self.objects.values())

    @property
    def checkpoints(self) -> list[Manifest]:
        return _parents_first([*self.whole, *self.lineage], self.lost)


def lacking(
    ws: Workspace, remote: Remote, checkpoints: Iterable[str], *, weights: Iterable[str] = (), runs: bool = True
) -> Receiving:
    """What is missing here of these checkpoints, their ancestors, and their runs; refused where it cannot be right. `weights`:
    checkpoints that are here without theirs, and are to have them again."""
    here = {entry.id for entry in ws.index.entries()}
    given_up = [each for each in ws.lost.all() if remote.has_manifest(each)]
    found_again = [each for each in given_up if remote.has_weights(each) or remote.has_seal(each)]
    again = [ws.manifest(each) for each in sorted({*weights, *found_again} & here) if each in ws.dropped]
    line, lost = _line(ws, remote, {*checkpoints, *given_up}, here)
    new = [*line, *again]
    whole = tuple(each for each in new if remote.has_weights(each.id))
    lineage = tuple(each for each in new if not remote.has_weights(each.id))
    told = {*here, *(each.id for each in new), *(each.checkpoint for each in lost), *ws.index.lost()}
    found = tuple(_runs(ws, remote, told)) if runs else ()
    wanted = {entry.sha256: entry.size for each in whole for entry in each.tree.values()}
    local = _local(ws, wanted)
    objects = {sha256: size for sha256, size in wanted.items() if sha256 not in local}
    objects |= {entry.sha256: entry.size for run in found for entry in run.tree.values()}
    seals = [remote.seal(each) for each in lineage if remote.has_seal(each.id)]
    encrypted = {entry.sha256: entry.size for each in seals for entry in each.tree.values()}
    objects |= {sha256: size for sha256, size in encrypted.items() if not ws.sealed.path(sha256).exists()}
    _check_sizes(remote, objects)
    signed = _signatures(ws, remote, here | {each.id for each in new})
    sealed = {each.checkpoint: each for each in seals}
    return Receiving(whole, lineage, found, objects, signed, sealed, lost=tuple(lost))


def runs_alone(ws: Workspace, remote: Remote, wanted: Container[str]) -> Receiving:
    """Those of the runs that the remote has, where what they made is here."""
    here = {entry.id for entry in ws.index.entries()} | ws.index.lost()
    found = tuple(run for run in _runs(ws, remote, here) if run.id in wanted)
    objects = {entry.sha256: entry.size for run in found for entry in run.tree.values()}
    _check_sizes(remote, objects)
    return Receiving((), (), found, objects, {})


def with_data(ws: Workspace, coming: Receiving, remote: Remote, checkpoints: Iterable[str]) -> Receiving:
    """With the snapshots that the remote has of the data that these checkpoints, and those to come, were made with."""
    here = with_ancestors(ws, [each for each in checkpoints if (ws.checkpoints / each).is_dir()])
    made = [*coming.checkpoints, *(ws.manifest(each) for each in here - ws.index.lost())]
    wanted = {snapshot for each in made for snapshot in read_by(each.made) if snapshot not in ws.snapshots}
    rows = tuple(remote.snapshot(each) for each in sorted(wanted) if remote.has_snapshot(each))
    pieces = {
        sha256: size for each in rows for sha256, size in each.pieces.items() if not ws.snapshots.has(sha256, size)
    }
    _check_sizes(remote, pieces)
    return replace(coming, objects={**coming.objects, **pieces}, snapshots=rows)


def beside(coming: Receiving, remote: Remote, files: Mapping[str, FileEntry]) -> Receiving:
    """With the objects of other files too."""
    objects = {entry.sha256: entry.size for entry in files.values()}
    _check_sizes(remote, objects)
    return replace(coming, objects={**coming.objects, **objects})


def _line(ws: Workspace, remote: Remote, wanted: set[str], here: set[str]) -> tuple[list[Manifest], list[Loss]]:
    """The manifests of what is missing, parents first, and what was given up of it. All that the remote lists and we lack are asked for at once: following
    a line of a thousand parents one by one would take a thousand round trips."""
    if not wanted - here:
        return [], []
    found = remote.new_manifests(here)
    needed: dict[str, Manifest] = {}
    lost: dict[str, Loss] = {}
    waiting = sorted(wanted - here)
    while waiting:
        each = waiting.pop()
        if each in needed or each in here or each in lost:
            continue
        if not remote.has_manifest(each) and (loss := remote.lost.get(each)) is not None:
            lost[each] = loss
            waiting += loss.parents
        else:
            needed[each] = found.get(each) or remote.manifest(each)
            waiting += needed[each].made.parents
    _check_lost(ws, list(needed.values()), list(lost.values()))
    return _parents_first(list(needed.values()), list(lost.values())), list(lost.values())


def _check_lost(ws: Workspace, line: Sequence[Manifest], lost: Sequence[Loss]) -> None:
    """A line cannot bite its own tail, for an id is a hash over the ids of the parents; what is said of one that is lost is no hash."""
    parents = {each.id: each.made.parents for each in line} | {each.checkpoint: each.parents for each in lost}
    for loss in lost:
        waiting, seen = list(loss.parents), set[str]()
        while waiting:
            if (each := waiting.pop()) not in seen:
                seen.add(each)
                waiting += parents[each] if each in parents else with_ancestors(ws, [each])
        if loss.checkpoint in seen:
            raise Corrupt(f"{loss.checkpoint[:12]} comes from itself, as the remote has it", hint=hostile.HINT)


def _parents_first(manifests: Sequence[Manifest], lost: Sequence[Loss] = ()) -> list[Manifest]:
    """Also of what is beyond one that was given up."""
    by_id = {each.id: each for each in manifests}
    parents = {each.id: each.made.parents for each in manifests} | {each.checkpoint: each.parents for each in lost}
    ordered: dict[str, None] = {}
    waiting = list(by_id)
    while waiting:
        missing = [each for each in parents[waiting[-1]] if each in parents and each not in ordered]
        if missing:
            waiting += missing
        else:
            ordered[waiting.pop()] = None
    return [by_id[each] for each in ordered if each in by_id]


def _runs(ws: Workspace, remote: Remote, checkpoints: set[str]) -> Iterator[ReceivedRun]:
    here = {path.name for path in (ws.root / "runs").iterdir()} if (ws.root / "runs").is_dir() else set()
    for run, checkpoint, tree in remote.new_runs(here):
        if not checkpoint or checkpoint in checkpoints:
            yield ReceivedRun(run, checkpoint, tree)


def _signatures(ws: Workspace, remote: Remote, checkpoints: set[str]) -> dict[str, str]:
    if not remote.signatures:
        return {}
    wanted = [each for each in sorted(checkpoints) if remote.has_signature(each)]
    there = dict(zip(wanted, in_parallel(remote.signature, wanted), strict=True))
    here = {each: signatures.read(ws.dot, each) or "" for each in signatures.signed(ws.dot) if each in there}
    new = {each: found.bundle for each, found in there.items() if found and each not in here}
    return new | vouching.to_take(ws, here, {each: there[each] for each in here})


def _local(ws: Workspace, wanted: Mapping[str, int]) -> dict[str, Path]:
    """Where the bytes of objects are here already: in the store, or in a checkpoint where the disk shares nothing."""
    found = {sha256: path for sha256 in wanted if (path := ws.objects.path(sha256)).is_file()}
    if len(found) < len(wanted) and ws.storage == "copy":
        dropped = ws.dropped.all()
        for entry in ws.index.entries():
            if entry.id not in dropped:
                tree = ws.manifest(entry.id).tree
                found |= {e.sha256: ws.checkpoints / entry.id / name for name, e in tree.items() if e.sha256 in wanted}
    return found


def _check_sizes(remote: Remote, objects: Mapping[str, int]) -> None:
    """Of each object as the remote tells it: what is missing, or cut off, or endless, is known before anything is written."""

    def check(item: tuple[str, int]) -> None:
        sha256, size = item
        if (there := remote.store.size(layout.object_name(sha256))) != size:
            told = "is missing" if there is None else f"has {there:,} bytes instead of {size:,}"
            raise Corrupt(
                f"object {sha256[:12]} {told} on {remote.name}",
                hint=hostile.AGAIN,
            )

    in_parallel(check, list(objects.items()))


def receive(ws: Workspace, remote: Remote, receiving: Receiving, emit: Emit) -> None:
    """Download what is missing. Nothing of it can be seen yet."""
    folder = ws.dot / "tmp" / FOLDER
    _check_room(ws, receiving.bytes - _arrived(folder, receiving.objects))
    meter = Meter("fetch", receiving.bytes, emit)
    with atomic.refusals(folder):
        atomic.make_directory(folder)
        in_parallel(lambda item: download(remote, folder, *item, meter), list(receiving.objects.items()), meter)
    meter.end()


def _check_room(ws: Workspace, needed: int) -> None:
    free = shutil.disk_usage(ws.root).free
    if needed > free:
        raise LlmosError(
            f"{view.size(needed)} are to come, and this disk has {view.size(free)} left",
            hint="`llmos gc --dry-run` lists what could go",
        )


def _arrived(folder: Path, objects: Mapping[str, int]) -> int:
    return sum(
        path.stat().st_size for sha256 in objects for path in (folder / sha256, _part(folder / sha256)) if path.exists()
    )


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def download(remote: Remote, folder: Path, sha256: str, size: int, meter: Meter) -> None:
    path = folder / sha256
    if path.exists():
        meter.heard(size)
        return
    resumed = _part(path).exists()
    arrived = _stream(remote, path, sha256, size, meter)
    if not arrived and resumed:
        # What a power cut left of it may be other bytes: once more, from the beginning.
        arrived = _stream(remote, path, sha256, size, meter)
    if not arrived:
        raise Corrupt(
            f"object {sha256[:12]} on {remote.name} is not what its name says",
            hint=hostile.AGAIN,
        )


def _stream(remote: Remote, path: Path, sha256: str, size: int, meter: Meter) -> bool:
    """Append to the part that is there; False, and no part, where the whole is not what it should be."""
    digest, part = hashlib.sha256(), _part(path)
    descriptor = plainly(part, os.O_RDWR | os.O_CREAT)
    with open(descriptor, "r+b") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            meter.heard(len(chunk))
        at = file.tell()
        for chunk in remote.store.chunks(layout.object_name(sha256), at) if at < size else ():
            at += len(chunk)
            if at > size:
                break
            digest.update(chunk)
            file.write(chunk)
            meter.heard(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if at != size or digest.hexdigest() != sha256:
        part.unlink()
        return False
    part.rename(path)
    return True


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
    events = run.tree.get("events.jsonl")
    if events is None:
        raise Corrupt(f"run {run.id} on the remote has no events.jsonl", hint="ask who can write there")
    hostile.check_events(folder / events.sha256, run.id)


def _staged(ws: Workspace, found: Manifest, target: Path, downloads: Path, weights: bool) -> storing.Prepared:
    atomic.make_directory(target)
    stored = 0
    if weights:
        local = _local(ws, {entry.sha256: entry.size for entry in found.tree.values()})
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
    for checkpoint, text in receiving.signatures.items():
        if not signatures.path(ws.dot, checkpoint).exists():
            atomic.write_text(signatures.path(ws.dot, checkpoint), text, scratch=ws.dot / "tmp")


def replaced(ws: Workspace, receiving: Receiving) -> list[Change]:
    """Signatures that take the place of those that are here."""
    changes = (vouching.taken(ws, *each) for each in receiving.signatures.items())
    return [each for each in changes if each.before not in (None, each.after)]


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


def publish_runs(ws: Workspace, receiving: Receiving) -> None:
    """With their folders, and before them the refs by which checkpoints are found by their runs: what is cut off in between
    comes again, as its folder is not there yet."""
    downloads = ws.dot / "tmp" / FOLDER
    for run in receiving.runs:
        if run.checkpoint:
            ws.refs.write(RUNS + run.id, run.checkpoint)
        with ws.stage() as folder:
            for name, entry in run.tree.items():
                atomic.make_directory((folder / name).parent)
                shutil.copyfile(downloads / entry.sha256, folder / name)
                atomic.sync_file(folder / name)
            atomic.publish(folder, ws.root / "runs" / run.id)
