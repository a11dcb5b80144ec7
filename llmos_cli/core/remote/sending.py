"""Sending: what a remote lacks of a line of checkpoints, and bringing it there in an order that a kill cannot spoil.

Objects go first, then manifests (parents before children), then runs, and the caller moves refs last: whatever the remote
names, it has. What was sent before a kill is found there by the next push and is not sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import kept, signatures
from llmos_cli.core.endings import EDITED, altered
from llmos_cli.core.listing import plainly, read_bytes
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.names import wrong
from llmos_cli.core.objects import files_below, hash_file
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.records import EVENTS, RunRecord
from llmos_cli.core.remote import hostile, layout, vouching
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import CHUNK, Content, whole
from llmos_cli.core.remote.vouching import Vouching
from llmos_cli.core.seal import Seal
from llmos_cli.core.snapshots import Snapshot, read_in
from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.events import Emit, Note

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_LEFT_HERE = frozenset({"deploy"})
"""Runs of these operations are processes of this machine, and no news of a checkpoint."""


@dataclass(frozen=True)
class SentRun:
    record: RunRecord
    checkpoint: str
    tree: dict[str, FileEntry]


@dataclass(frozen=True)
class Sending:
    """What is to go: `whole` have their weights here, `lineage` only their manifests, some of them `sealed`; parents come first. `objects`: SHA-256 ->
    where its bytes are and how many."""

    whole: tuple[Manifest, ...]
    lineage: tuple[Manifest, ...]
    runs: tuple[SentRun, ...]
    objects: dict[str, tuple[Path, int]]
    signatures: Mapping[str, Vouching]
    sealed: tuple[Seal, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    lost: tuple[Loss, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.objects.values())

    @property
    def empty(self) -> bool:
        return not (
            self.whole or self.lineage or self.sealed or self.runs or self.signatures or self.snapshots or self.lost
        )


def lacking(
    ws: Workspace, remote: Remote, checkpoints: Sequence[str], *, data: bool = False, force: bool = False
) -> Sending:
    """What `remote` lacks of these checkpoints, their ancestors, and the runs that made or measured them; with `data`, of the
    snapshots of what they were made with; with `force`, signatures that somebody else has sent otherwise too."""
    with ws.index.still():
        new, known = _new(ws, remote, checkpoints)
        given_up = _given_up(ws, remote, new)
        known -= ws.index.lost()
        weights, bare, sealed = _parted(ws, remote, _here(ws, parents_first(ws, new)))
        runs = list(_runs(ws, remote, checkpoints))
        signed = any(signatures.signed(ws.dot))
        vouching = _signatures(ws, remote, with_ancestors(ws, checkpoints), force=force) if signed else {}
    rows = _snapshots(ws, remote, checkpoints) if data else ()
    objects = _objects(ws, remote, weights, _files(runs) | _encrypted(ws, sealed) | _pieces(ws, rows), known)
    _check_names([*weights, *bare], runs)
    return Sending(tuple(weights), tuple(bare), tuple(runs), objects, vouching, tuple(sealed), tuple(rows), given_up)


def _check_names(checkpoints: Iterable[Manifest], runs: Iterable[SentRun] = ()) -> None:
    """What a fetch would refuse is not sent."""
    trees = [(f"checkpoint {each.id[:12]}", each.tree) for each in checkpoints]
    trees += [(f"run {each.record.id}", each.tree) for each in runs]
    for what, tree in trees:
        if why := wrong(tree):
            raise UsageError(f"{what} could not be fetched: it {why}", hint="a file of a run may be renamed in `runs/`")


def _given_up(ws: Workspace, remote: Remote, line: Iterable[str]) -> tuple[Loss, ...]:
    """Holes of the line, which are known to be such there then."""
    lost = sorted(ws.index.lost() & set(line))
    found = [ws.lost.find(each) for each in lost if not remote.has_manifest(each)]
    return tuple(each for each in found if each is not None and remote.lost.get(each.checkpoint) != each)


def _here(ws: Workspace, line: Sequence[str]) -> list[str]:
    """Without its holes, which have put what is beyond them in its place."""
    lost = ws.index.lost()
    return [each for each in line if each not in lost]


def _parted(ws: Workspace, remote: Remote, line: Sequence[str]) -> tuple[list[Manifest], list[Manifest], list[Seal]]:
    """What the remote lacks: manifests with weights, manifests alone, and seals, which stand beside such a manifest."""
    closed = {each: ws.closed(each) for each in line}
    weights = [ws.manifest(each) for each in line if not closed[each] and not remote.has_weights(each)]
    bare = [ws.manifest(each) for each in line if closed[each] and not remote.has_manifest(each)]
    sealed = [each for each in line if closed[each] == "sealed" and not remote.has_weights(each)]
    return weights, bare, [ws.sealed.seal(each) for each in sealed if not remote.has_seal(each)]


def _encrypted(ws: Workspace, seals: Iterable[Seal]) -> dict[str, tuple[Path, int]]:
    entries = [entry for each in seals for entry in each.tree.values()]
    return {entry.sha256: (ws.sealed.path(entry.sha256), entry.size) for entry in entries}


def _snapshots(ws: Workspace, remote: Remote, checkpoints: Sequence[str]) -> list[Snapshot]:
    kept = read_in(ws, with_ancestors(ws, checkpoints))
    return [ws.snapshots.read(each) for each in sorted(kept) if not remote.has_snapshot(each)]


def _pieces(ws: Workspace, rows: Iterable[Snapshot]) -> dict[str, tuple[Path, int]]:
    return {sha256: (ws.snapshots.piece(sha256), size) for each in rows for sha256, size in each.pieces.items()}


def _new(ws: Workspace, remote: Remote, checkpoints: Sequence[str]) -> tuple[set[str], set[str]]:
    """The part of the lines that may be missing there, and what is there already and borders on it.

    Parents are written before children: where every manifest has its weights, what has one has its whole line. Parents that it
    has lost since are sent again where they border on what is new.
    """
    new: set[str] = set()
    known: set[str] = set()
    waiting = list(checkpoints)
    while waiting:
        each = waiting.pop()
        if each in new or each in known:
            continue
        there = remote.has_weights(each)
        (known if there else new).add(each)
        entry = ws.index.entry(each)
        parents = entry.parents if entry else ()
        waiting += parents if not there or remote.lineage else (p for p in parents if not remote.has_manifest(p))
    return new | (known if remote.lineage else set()), known


def parents_first(ws: Workspace, checkpoints: set[str]) -> list[str]:
    ordered: dict[str, None] = {}
    waiting = sorted(checkpoints)
    while waiting:
        entry = ws.index.entry(waiting[-1])
        missing = [each for each in (entry.parents if entry else ()) if each in checkpoints and each not in ordered]
        if missing:
            waiting += missing
        else:
            ordered[waiting.pop()] = None
    return list(ordered)


def _runs(ws: Workspace, remote: Remote, checkpoints: Sequence[str]) -> Iterator[SentRun]:
    """Those whose checkpoint is of the line, and those that are done, made none and looked at one of it (evaluations, proofs). What made
    another goes with that: a workspace where it came first would not have the ref by which that is found."""
    line = with_ancestors(ws, checkpoints)
    new = sorted(run for run in ws.index.runs_of(line) if not remote.has_run(run))
    for record in filter(None, map(ws.index.record, new)):
        made = record.checkpoint if record.checkpoint in line else ""
        looked = record.status == "done" and not record.checkpoint and set(record.parents) & line
        travels = not record.alive and record.status != "died" and record.operation not in _LEFT_HERE
        if travels and (made or looked) and _is_sound(ws, record):
            yield sent_run(record, made)


def sent_run(record: RunRecord, made: str) -> SentRun:
    """As it is now, without what it could be resumed from; `made`: the checkpoint that it committed, or ""."""
    names = [name for name in files_below(record.path) if name.split("/")[0].casefold() != "state"]
    return SentRun(record, made, {name: hash_file(record.path / name) for name in names})


def _is_sound(ws: Workspace, record: RunRecord) -> bool:
    if why := wrong_run(record):
        ws.emit(Note(f"run {record.id} stays here: {why}", "warning"))
    return not why


def wrong_run(record: RunRecord) -> str | None:
    """Why others would not believe it: its events (a disk that was full may have cut a line off, and all of the remote would be refused),
    or its files, which are not what it was given. None where they would."""
    events = record.path / EVENTS
    edited = f"{EVENTS} {EDITED}" if altered(read_bytes(events)) else None
    return hostile.wrong_events(events) or edited or next(map(" ".join, kept.wrong(record.path)), None)


def everything(
    ws: Workspace, remote: Remote, checkpoints: Sequence[str], beside: Mapping[str, tuple[Path, int]]
) -> Sending:
    """What it lacks of all of these checkpoints that are here, whoever names them, and of the objects `beside` them."""
    with ws.index.still():
        given_up = _given_up(ws, remote, ws.index.lost())
        known = ws.index.parents().keys() & {*checkpoints, *ws.index.lost()}
        weights, bare, sealed = _parted(ws, remote, _here(ws, parents_first(ws, known)))
    objects = _objects(ws, remote, weights, {**beside, **_encrypted(ws, sealed)}, ())
    _check_names([*weights, *bare])
    return Sending(tuple(weights), tuple(bare), (), objects, {}, tuple(sealed), lost=given_up)


def _files(runs: Sequence[SentRun]) -> dict[str, tuple[Path, int]]:
    return {entry.sha256: (run.record.path / name, entry.size) for run in runs for name, entry in run.tree.items()}


def _signatures(ws: Workspace, remote: Remote, checkpoints: Iterable[str], *, force: bool) -> dict[str, Vouching]:
    """Of those that the remote lacks, or has an older one of."""
    line = set(checkpoints)
    here = {each: signatures.read(ws.dot, each) or "" for each in signatures.signed(ws.dot) if each in line}
    known = [each for each in here if remote.has_signature(each)]
    there = dict(zip(known, in_parallel(remote.signature, known), strict=True))
    found = vouching.to_send(ws, here, there, force=force)
    logged = signatures.logged(ws.oplog.path) if found else {}
    for checkpoint, sent in found.items():
        if (logged.get(checkpoint) or sent.bundle) != sent.bundle:
            raise Corrupt(
                f"the signature of {checkpoint[:12]} is not what was put there, and nothing was sent",
                hint="`llmos fsck --repair` brings it back; `llmos sign` puts another in its place",
            )
    return found


def _objects(
    ws: Workspace,
    remote: Remote,
    sent: Sequence[Manifest],
    beside: Mapping[str, tuple[Path, int]],
    known: Iterable[str],
) -> dict[str, tuple[Path, int]]:
    """Those of the new manifests and `beside` them that no `known` manifest has, and that no earlier push brought either."""
    wanted = {
        entry.sha256: (ws.checkpoints / each.id / name, entry.size)
        for each in sent
        for name, entry in each.tree.items()
    }
    wanted |= beside
    for each in known if wanted else ():
        for entry in ws.manifest(each).tree.values():
            wanted.pop(entry.sha256, None)
    listed = list(wanted.items()) if remote.is_begun else []
    there = in_parallel(lambda item: remote.store.size(layout.object_name(item[0])) == item[1][1], listed)
    for (sha256, _), arrived in zip(listed, there, strict=True):
        if arrived:
            del wanted[sha256]
    return wanted


def send(remote: Remote, sending: Sending, emit: Emit) -> None:
    """All but the refs."""
    remote.begin()
    meter = Meter("push", sending.bytes, emit)

    def send_object(item: tuple[str, tuple[Path, int]]) -> None:
        sha256, (path, size) = item
        remote.store.put(layout.object_name(sha256), content(path, FileEntry(sha256, size)), meter.heard)

    in_parallel(send_object, list(sending.objects.items()), meter)
    meter.end()
    for loss in sending.lost:  # before its children, as a manifest would be
        remote.store.put(layout.loss_name(loss.checkpoint), whole(loss.text().encode()), lambda _: None)
    for seal in sending.sealed:  # before the manifest: a manifest alone says that the weights were removed
        remote.store.put(layout.seal_name(seal.checkpoint), whole(seal.text().encode()), lambda _: None)
    for each in sending.lineage:
        remote.store.put(layout.lineage_name(each.id), whole(each.text().encode()), lambda _: None)
    for each in sending.whole:
        remote.store.put(layout.checkpoint_name(each.id), whole(each.text().encode()), lambda _: None)
    for checkpoint, signed in sending.signatures.items():
        _write(remote, layout.signature_name(checkpoint), signed.said(checkpoint))
    for snapshot in sending.snapshots:
        remote.store.put(layout.snapshot_name(snapshot.id), whole(snapshot.text().encode()), lambda _: None)
    in_parallel(partial(send_run, remote), sending.runs)


def send_run(remote: Remote, run: SentRun) -> None:
    tree = {name: asdict(entry) for name, entry in run.tree.items()}
    _write(remote, layout.run_name(run.record.id), {"run": run.record.id, "checkpoint": run.checkpoint, "tree": tree})


def _write(remote: Remote, name: str, value: Mapping[str, object]) -> None:
    remote.store.put(name, whole(layout.text(value)), lambda _: None)


def content(path: Path, entry: FileEntry) -> Content:
    """A file that must still be what it was when it was saved, for as far as it was read."""

    def chunks() -> Iterator[bytes]:
        digest, left = hashlib.sha256(), entry.size
        with open(path, "rb", opener=plainly) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
        if left or digest.hexdigest() != entry.sha256:
            raise Corrupt(
                f"{path.name} in {path.parent.name[:12]} is not what was saved, and was not sent",
                hint="`llmos fsck` tells what else is affected",
            )

    return Content(entry.size, chunks)
