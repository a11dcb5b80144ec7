"""What a remote has and this workspace lacks: read and judged before a byte of it is written.

Then objects are downloaded (`downloading.py`), and all checkpoints appear, parents first (`arriving.py`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import signatures
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.remote import hostile, layout, vouching
from llmos_cli.core.remote.parallel import in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.seal import Seal
from llmos_cli.core.snapshots import Snapshot, read_by
from llmos_cli.errors import Corrupt

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


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
    local = at_hand(ws, wanted)
    objects = {sha256: size for sha256, size in wanted.items() if sha256 not in local}
    objects |= {entry.sha256: entry.size for run in found for entry in run.tree.values()}
    seals = [remote.seal(each) for each in lineage if remote.has_seal(each.id)]
    encrypted = {entry.sha256: entry.size for each in seals for entry in each.tree.values()}
    objects |= {sha256: size for sha256, size in encrypted.items() if not ws.sealed.path(sha256).exists()}
    _check_sizes(remote, objects)
    signed = _signatures(ws, remote, here | {each.id for each in new})
    _check_signatures(ws, signed, {each.id: each for each in new})
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


def _check_signatures(ws: Workspace, signed: Mapping[str, str], new: Mapping[str, Manifest]) -> None:
    """Whether each is of the checkpoint that it came for; whether it is true takes a key."""
    for checkpoint, text in signed.items():
        found = new.get(checkpoint) or (ws.manifest(checkpoint) if checkpoint not in ws.index.lost() else None)
        if found and not signatures.parse(text, "it").is_of(found.text().encode()):
            raise Corrupt(
                f"the signature of {checkpoint[:12]} on the remote is that of another checkpoint", hint=hostile.HINT
            )


def at_hand(ws: Workspace, wanted: Mapping[str, int]) -> dict[str, Path]:
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
