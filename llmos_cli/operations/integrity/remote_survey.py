"""What a remote has: every small file of it read and judged, and who names which objects.

What is written first is listed last, so that a push or a backup that goes on meanwhile is no damage: refs and backups are listed
before what they name, and objects after all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from llmos_cli.core import seal, snapshots
from llmos_cli.core.lost import Loss
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.refs import REMOTES
from llmos_cli.core.remote import backups, hostile, layout
from llmos_cli.core.remote.backups import Backup
from llmos_cli.core.remote.parallel import in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.seal import Seal
from llmos_cli.core.snapshots import Snapshot
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UNREADABLE, Corrupt, LlmosError
from llmos_cli.operations.pipeline.memory import Memory, Result, result_of
from llmos_cli.operations.summary import SHORT

T = TypeVar("T")
Judge = Callable[[bytes, str], tuple[str, str, T]]
"""Of a file's content and where it was listed: the name it must have, whose it is, and what it says; Corrupt or UNREADABLE."""
UNSIZED = -1
"""Of an object whose size nobody names: what a pipeline's stage wrote."""


@dataclass(frozen=True)
class Wrong:
    """What is told of a file that is not what it should be, or cannot be read."""

    what: str


@dataclass(frozen=True)
class Named:
    """An object that is named: by whom, in words, as what, and where the same bytes may be here."""

    by: str
    entry: FileEntry
    here: Path | None = None
    checkpoints: tuple[str, ...] = ()
    backup: str = ""


@dataclass(frozen=True)
class Run:
    id: str
    checkpoint: str
    tree: Mapping[str, FileEntry]


def tried(there: Remote, read: Callable[[], T]) -> T | Wrong:
    """LlmosError only where the place itself cannot be reached any more: one file that cannot be read is damage."""
    try:
        return read()
    except Corrupt as error:
        return Wrong(error.message)
    except UNREADABLE as error:
        return Wrong(f"makes no sense: {str(error)[:80] or type(error).__name__}")
    except (OSError, LlmosError) as error:
        _must_answer(there)
        told = error.message if isinstance(error, LlmosError) else error.strerror or str(error)
        return Wrong(f"cannot be read: {told}")


def _must_answer(there: Remote) -> None:
    try:
        answers = there.size_listed(layout.FORMAT_FILE) is not None
    except OSError:
        answers = False
    if not answers:
        raise LlmosError(f"{there.url} cannot be read any more", hint="is the disk still there? Then try again")


class Survey:
    """`damaged`: listed name -> what is wrong with it; `rows`: ref -> number -> what it was moved to; `read`: how many files, `bytes` of
    them; `proven`: objects that were read already -> their bytes."""

    def __init__(self, ws: Workspace, there: Remote) -> None:
        self._ws, self._there = ws, there
        self.damaged: dict[str, str] = {}
        self.unlisted: dict[str, str] = {}
        """Backup -> why nobody knows which files it has."""
        self.proven: dict[str, int] = {}
        self.read = self.bytes = 0
        self.seen = {f"refs/{ref}": value for ref, value in ws.refs.under(f"{REMOTES}{there.name}/").items()}
        """Where branches and tags of the remote were when it was last heard of."""
        moves = self._counted(self._all(layout.REFS, _move))
        self.rows: dict[str, dict[int, str | None]] = {}
        for name, (ref, value) in moves.items():
            self.rows.setdefault(ref, {})[int(name[-8:])] = value
        self.numbers = self._numbers(moves)
        self.backups = self._all(layout.BACKUPS, _backup)
        self.results = self._all(layout.RESULTS, _result)
        self.runs = self._all(layout.RUNS, _run)
        self.snapshots = self._all(layout.SNAPSHOTS, _snapshot)
        self.signatures = self._all(layout.SIGNATURES, _signature)
        self.whole = self._all(layout.CHECKPOINTS, _whole)
        self.bare = self._all(layout.LINEAGE, _bare)
        self.seals = self._all(layout.SEALED, self._seal)
        self.losses = self._all(layout.LOST, _loss)
        self.named = {each.entry for each in self.names()}
        self.objects = there.names(layout.OBJECTS)

    def _all(self, folder: str, judge: Judge[T]) -> dict[str, T]:
        """By whose they are, of those that are sound."""
        names = [f"{folder}/{name}" for name in sorted(self._there.names(folder))]
        found: dict[str, T] = {}
        for name, judged in zip(names, in_parallel(lambda each: self._judged(each, judge), names), strict=True):
            if isinstance(judged, Wrong):
                self.damaged[name] = judged.what
            else:
                whose, found[whose], size = judged
                self.bytes += size
            self.read += 1
        return found

    def _judged(self, name: str, judge: Judge[T]) -> tuple[str, T, int] | Wrong:
        def read() -> tuple[str, T, int]:
            text = self._there.read_listed(name, hostile.MANIFEST_LIMIT)
            own, whose, value = judge(text, name)
            if self._there.stored(own) != name:
                raise Corrupt(f"is {own}, under another name", hint=hostile.HINT)
            return whose, value, len(text)

        return tried(self._there, read)

    def _seal(self, text: bytes, name: str) -> tuple[str, str, Seal]:
        checkpoint = str(json.loads(text)["checkpoint"])
        found = self.manifest(checkpoint)
        sealed = hostile.read_seal(text, found) if found else seal.parse(text, checkpoint)
        return layout.seal_name(checkpoint), checkpoint, sealed

    def _numbers(self, sound: Iterable[str]) -> dict[str, set[int]]:
        """Row of a ref, as it is listed -> the numbers that are there, damaged ones too."""
        found: dict[str, set[int]] = {}
        for name in (*sound, *self.damaged):  # refs are looked at first
            row, _, number = name.rpartition("/")
            if len(number) == 8 and number.isdigit() and self.damaged.get(name) != layout.UNCOUNTED:
                found.setdefault(row, set()).add(int(number))
        return found

    def _counted(self, moves: dict[str, tuple[str, str | None]]) -> dict[str, tuple[str, str | None]]:
        """Without those whose numbers nobody came to by counting, which are damage."""
        rows = self._numbers(moves)
        strange = {f"{row}/{each:08d}" for row, numbers in rows.items() for each in layout.beyond(numbers)}
        self.damaged |= dict.fromkeys(strange, layout.UNCOUNTED)
        return {name: move for name, move in moves.items() if name not in strange}

    def manifest(self, checkpoint: str) -> Manifest | None:
        return self.whole.get(checkpoint) or self.bare.get(checkpoint)

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Of all whose manifest or loss is there."""
        found = {each.checkpoint: each.parents for each in self.losses.values()}
        return found | {each.id: each.made.parents for each in (*self.bare.values(), *self.whole.values())}

    @cached_property
    def tips(self) -> dict[str, str]:
        """Branch or tag -> its checkpoint."""
        last = {ref: row[max(row)] for ref, row in self.rows.items()}
        return {ref: value for ref, value in last.items() if value}

    def line(self, checkpoint: str) -> set[str]:
        """With its ancestors, where a manifest cannot be read as far as this workspace knows them."""
        found, waiting = set[str](), [checkpoint]
        while waiting:
            if (each := waiting.pop()) not in found:
                found.add(each)
                entry = None if each in self.parents else self._ws.index.entry(each)
                waiting += self.parents.get(each, entry.parents if entry else ())
        return found

    def hurts(self, checkpoints: Iterable[str], hurt: Iterable[str] = ()) -> tuple[str, ...]:
        """Branches and tags of the remote that have one of these in their line, and backups; `hurt` are such themselves."""
        lost, found = set(checkpoints), set(hurt)
        refs = [called(self._there, ref) for ref, line in self._lines.items() if line & lost]
        found |= {name for name, each in self.backups.items() if lost.intersection(each.checkpoints)}
        return (*refs, *(f"backup {name}" for name in sorted(found)))

    @cached_property
    def _lines(self) -> dict[str, set[str]]:
        return {ref: self.line(value) for ref, value in self.tips.items()}

    def names(self) -> Iterator[Named]:
        """Every object that something names."""
        ws = self._ws
        for each in self.whole.values():
            for name, entry in each.tree.items():
                yield Named(f"{each.id[:SHORT]}/{name}", entry, ws.checkpoints / each.id / name, (each.id,))
        for sealed in self.seals.values():
            for name, entry in sealed.tree.items():
                by = f"{sealed.checkpoint[:SHORT]}/{name}, sealed"
                yield Named(by, entry, ws.sealed.path(entry.sha256), (sealed.checkpoint,))
        for run in self.runs.values():
            for name, entry in run.tree.items():
                yield Named(f"runs/{run.id}/{name}", entry, ws.root / "runs" / run.id / name, (run.checkpoint,))
        for kept in self.snapshots.values():
            for sha256, size in kept.pieces.items():
                entry, whom = FileEntry(sha256, size), self._readers.get(kept.id, ())
                yield Named(f"snapshot {kept.id[:SHORT]}", entry, ws.snapshots.piece(sha256), tuple(whom))
        for result in self.results.values():
            for name, sha256 in result.outputs.items():
                entry = FileEntry(sha256.removesuffix("+x"), UNSIZED)
                yield Named(f"{name} of stage {result.stage}", entry, Memory(ws).contents(sha256))
        for backup in self.backups.values():
            yield from self._of_backup(backup)

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        """Snapshot -> the checkpoints whose data it is."""
        found: dict[str, list[str]] = {}
        for each in (*self.bare.values(), *self.whole.values()):
            for snapshot in snapshots.read_by(each.made):
                found.setdefault(snapshot, []).append(each.id)
        return found

    def _of_backup(self, backup: Backup) -> Iterator[Named]:
        by = backup.backup
        yield Named(f"the list of files of backup {by}", backup.tree, backup=by)
        found = tried(self._there, lambda: backups.files_of(self._there, backup)[0])
        if isinstance(found, Wrong):
            self.unlisted[by] = found.what
            return
        self.proven[self._there.stored(layout.object_name(backup.tree.sha256))] = backup.tree.size
        for name, entry in found.items():
            yield Named(f"{name} of backup {by}", entry, self._ws.root / name, backup=by)


def called(there: Remote, ref: str) -> str:
    """As `fetch` calls it here."""
    return f"{there.name}/{ref.removeprefix('refs/').partition('/')[2]}"


def _must_be_written(value: Mapping[str, object], text: bytes) -> None:
    if not layout.is_written(value, text):
        raise Corrupt("was altered: it is not as it was written", hint=hostile.HINT)


def _move(text: bytes, name: str) -> tuple[str, str, tuple[str, str | None]]:
    ref, value = hostile.read_ref(text)
    _must_be_written({"ref": ref, "value": value}, text)
    return layout.ref_name(ref, int(name.rpartition("/")[2])), name, (ref, value)


def _backup(text: bytes, name: str) -> tuple[str, str, Backup]:
    found = backups.read(text)
    _must_be_written(json.loads(json.dumps(asdict(found))), text)
    return layout.backup_name(found.backup), found.backup, found


def _result(text: bytes, name: str) -> tuple[str, str, Result]:
    said = layout.parse(text)
    _must_be_written(said, text)
    found = result_of(said)
    if not all(map(hostile.is_id, (sha256.removesuffix("+x") for sha256 in found.outputs.values()))):
        raise Corrupt("makes no sense: it names an output that has no hash", hint=hostile.HINT)
    return layout.result_name(found.key), found.key, found


def _run(text: bytes, name: str) -> tuple[str, str, Run]:
    run, checkpoint, tree = hostile.read_run(text)
    _must_be_written({"run": run, "checkpoint": checkpoint, "tree": {n: asdict(e) for n, e in tree.items()}}, text)
    return layout.run_name(run), run, Run(run, checkpoint, tree)


def _snapshot(text: bytes, name: str) -> tuple[str, str, Snapshot]:
    found = hostile.read_snapshot(text, snapshots.parse(text).id)
    if not found.is_written(text):
        raise Corrupt("was altered: it is not as it was written", hint=hostile.HINT)
    return layout.snapshot_name(found.id), found.id, found


def _signature(text: bytes, name: str) -> tuple[str, str, str]:
    checkpoint = str(layout.parse(text)["checkpoint"])
    found = hostile.read_signature(text, checkpoint)
    _must_be_written(found.said(checkpoint), text)
    return layout.signature_name(checkpoint), checkpoint, found.bundle


def _whole(text: bytes, name: str) -> tuple[str, str, Manifest]:
    found = hostile.read_manifest(text)
    if not found.is_written(text):
        raise Corrupt("was altered, though it means the same", hint=hostile.HINT)
    return layout.checkpoint_name(found.id), found.id, found


def _bare(text: bytes, name: str) -> tuple[str, str, Manifest]:
    _, checkpoint, found = _whole(text, name)
    return layout.lineage_name(checkpoint), checkpoint, found


def _loss(text: bytes, name: str) -> tuple[str, str, Loss]:
    found = hostile.read_loss(text)
    return layout.loss_name(found.checkpoint), found.checkpoint, found
