"""data: keep the rows that runs read, and say what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_cli import tasks
from llmos_cli.core.locks import lock
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.operation import Change
from llmos_cli.core.oplog import WINDOW
from llmos_cli.core.refs import DATA, check_name
from llmos_cli.core.snapshots import Snapshot, identify, readers
from llmos_cli.core.snapshots import lost as missing
from llmos_cli.core.view import Group, Line, Lines, Span, Table, View, short, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.data import snapshots, sources, splits
from llmos_cli.data.sources import Loaded
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import lineage
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.config import no_task, resolve
from llmos_cli.operations.named import check_free
from llmos_cli.options.data import DataOptions

if TYPE_CHECKING:
    from llmos_cli.tasks.base import Task


@dataclass(frozen=True)
class Taken:
    """`rows` of each split; `size` in bytes, of which `new` were not on this disk; `checkpoints` were made with it."""

    snapshot: str
    source: str
    rows: Mapping[str, int]
    size: int
    new: int
    checkpoints: Sequence[str]


@dataclass(frozen=True)
class Lost:
    """Data that is not any more what `checkpoint` was made with."""

    checkpoint: str
    source: str
    why: str


@dataclass(frozen=True)
class SnapshotResult:
    taken: Sequence[Taken]
    lost: Sequence[Lost]
    name: str | None
    dry_run: bool

    def view(self) -> View:
        lines: list[Line] = [line for each in self.taken for line in self._told(each)]
        lines += [
            [Span("lost", "bad"), f"  {each.source} of {short(each.checkpoint)}: {each.why}"] for each in self.lost
        ]
        return Lines(lines)

    def _told(self, each: Taken) -> Iterator[Line]:
        rows = ", ".join(f"{count:,} {split}" for split, count in each.rows.items())
        new = "all of it here already" if not each.new else f"{size(each.new)} of it new"
        verb = "would keep" if self.dry_run else "kept"
        yield [f"{verb} ", Span(short(each.snapshot), "id"), f": {each.source}, {rows} rows, {size(each.size)}, {new}"]
        if self.name:
            yield f"it is called {self.name}: `data.source: {snapshots.PREFIX}{self.name}` reads it"

    def enforce(self) -> None:
        if self.lost:
            raise Corrupt(
                f"{self.lost[0].source} is not what {short(self.lost[0].checkpoint)} was made with: {self.lost[0].why}",
                hint="bring the data back as it was; `--source` keeps what is there now",
            )


def snapshot(
    ws: Workspace,
    rev: str | None = None,
    *,
    source: str | None = None,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> SnapshotResult:
    """What a revision (HEAD) and its line were made with; or `source`, or where nothing is made yet that of configs/train.yaml, as
    training would read it now. `force`: a `name` that another snapshot has moves."""
    if source is not None and rev is not None:
        raise UsageError("a revision has its data already", hint="give a revision or --source, not both")
    if name is not None and _check_name(ws, name) and not force:
        told, _ = _take(ws, rev, source, dry_run=True, emit=ignore)  # before anything is kept
        _check_stays(ws, name, told)
    found, lost = _take(ws, rev, source, dry_run=dry_run, emit=emit)
    if name is not None and found and not dry_run:
        _call(ws, name, found[0].snapshot)
    return SnapshotResult(found, lost, name, dry_run)


def _check_name(ws: Workspace, name: str) -> bool:
    """Whether a snapshot has it already."""
    check_free(ws, DATA, check_name("snapshot", name))
    return ws.refs.read(DATA + name) is not None


def _check_stays(ws: Workspace, name: str, found: Sequence[Taken]) -> None:
    before = ws.refs.read(DATA + name)
    if before and found and before != found[0].snapshot:
        raise UsageError(
            f"snapshot {name} is {short(before)} already",
            hint="`llmos data snapshot -f` moves the name, or choose another",
        )


def _take(
    ws: Workspace, rev: str | None, source: str | None, *, dry_run: bool, emit: Emit
) -> tuple[list[Taken], list[Lost]]:
    if source is not None or (rev is None and ws.head().checkpoint is None):
        return [_of_config(ws, source, dry_run=dry_run, emit=emit)], []
    return _of_line(ws, ws.resolve(rev or "HEAD"), dry_run=dry_run, emit=emit)


def _call(ws: Workspace, name: str, snapshot: str) -> None:
    before = ws.refs.read(DATA + name)
    if before != snapshot:
        ws.oplog.apply(f"data snapshot --name {name}", [Change(DATA + name, before, snapshot)], emit=ws.emit)


def _of_config(ws: Workspace, source: str | None, *, dry_run: bool, emit: Emit) -> Taken:
    options: DataOptions = resolve(ws, "train").config.data
    if source is not None:
        options = options.elsewhere(source)
    if options.task is None:
        raise no_task(ws)
    task = tasks.load(options.task)
    return _taken(ws, sources.load(options, task.columns, cache=ws.cache), options, task, (), dry_run, emit)


def _of_line(ws: Workspace, checkpoint: str, *, dry_run: bool, emit: Emit) -> tuple[list[Taken], list[Lost]]:
    taken: dict[str, Taken] = {}
    lost: list[Lost] = []
    for made in lineage.line(ws, checkpoint):
        for options, recorded in _data_of(made):
            wanted = identify(recorded)
            try:
                taken[wanted] = taken.get(wanted) or _of_step(ws, made, options, recorded, dry_run=dry_run, emit=emit)
            except (NotFound, Corrupt) as error:
                lost.append(Lost(made.id, _named(options), error.message))
    if not taken and not lost:
        raise NotFound(f"{short(checkpoint)} was made without data", hint="`--source` keeps a source of your own")
    return list(taken.values()), lost


def _data_of(made: Manifest) -> Iterator[tuple[DataOptions, Mapping[str, Any]]]:
    """The sections of data that a checkpoint was made with, and which rows they gave."""
    section = made.made.config.get("data")
    if not section or not made.made.data.get("splits"):
        return
    options = DataOptions(**section)
    yield options, made.made.data["splits"]
    calibration = made.made.data.get("calibration") or {}
    if calibration.get("source"):
        yield options.all_of(calibration["source"]), calibration["data"]["splits"]


def _of_step(
    ws: Workspace, made: Manifest, options: DataOptions, recorded: Mapping[str, Any], *, dry_run: bool, emit: Emit
) -> Taken:
    wanted = identify(recorded)
    checkpoints = readers(ws).get(wanted, [])
    if wanted in ws.snapshots:
        return _already(ws.snapshots.read(wanted), checkpoints)
    task = tasks.load(options.task or tasks.of_checkpoint(made, ws.checkpoint(made.id).config_json()).name)
    loaded = sources.load(options, task.columns, cache=ws.cache)
    for split, before in recorded.items():
        now = loaded.fingerprint["splits"].get(split, {"rows": 0})
        if now != before:
            told = f"{now['rows']:,} rows now" if now["rows"] != before["rows"] else "other rows now"
            raise Corrupt(f"its {split} split had {before['rows']:,} rows and has {told}", hint="bring it back")
    return _taken(ws, loaded, options, task, checkpoints, dry_run, emit)


def _named(options: DataOptions) -> str:
    given = options.source if isinstance(options.source, list) else [options.source or "data.splits"]
    return ", ".join(each if isinstance(each, str) else each.source for each in given)


def _already(kept: Snapshot, checkpoints: Sequence[str]) -> Taken:
    return Taken(kept.id, kept.source, _rows(kept), sum(kept.pieces.values()), 0, checkpoints)


def _rows(kept: Snapshot) -> dict[str, int]:
    return {name: kept.splits[name].rows for name in splits.NAMES if name in kept.splits}


def _taken(
    ws: Workspace,
    loaded: Loaded,
    options: DataOptions,
    task: Task,
    checkpoints: Sequence[str],
    dry_run: bool,
    emit: Emit,
) -> Taken:
    for note in loaded.notes:
        emit(Note(note, level="warning"))
    if dry_run:
        kept, new = _written(ws, loaded, options, task, dry_run=True)
    else:
        with lock(ws.snapshots.lock, emit=ws.emit):  # `gc` takes no piece that is about to be named
            kept, new = _written(ws, loaded, options, task, dry_run=False)
        ws.oplog.note(f"data snapshot {short(kept.id)} of {kept.source}")
    return Taken(kept.id, kept.source, _rows(kept), sum(kept.pieces.values()), new, checkpoints)


def _written(ws: Workspace, loaded: Loaded, options: DataOptions, task: Task, *, dry_run: bool) -> tuple[Snapshot, int]:
    """The snapshot, and how many of its bytes were not here before."""
    import hashlib

    new: dict[str, int] = {}

    def store(content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        if not ws.snapshots.has(sha256, len(content)):
            new[sha256] = len(content)
        return sha256 if dry_run else ws.snapshots.store(content)

    kept = snapshots.kept(loaded.splits, source=loaded.name, asked=snapshots.asked(options, task.columns), store=store)
    if kept.fingerprint != loaded.fingerprint["splits"]:
        raise Corrupt(
            f"{loaded.name} changed while it was read", hint="take the snapshot again when nobody writes there"
        )
    if not dry_run:
        ws.snapshots.write(kept)
    return kept, sum(new.values())


@dataclass(frozen=True)
class Kept:
    """`own`: bytes of pieces that no other snapshot has; `checkpoints`: how many were made with it."""

    snapshot: str
    names: Sequence[str]
    source: str
    rows: int
    size: int
    own: int
    checkpoints: int
    time: str


@dataclass(frozen=True)
class DataList:
    snapshots: Sequence[Kept]

    def view(self) -> View:
        if not self.snapshots:
            return "no data is kept here; `llmos data snapshot` keeps what HEAD was made with"
        rows: list[list[str | Span]] = [
            [
                Span(short(each.snapshot), "id"),
                each.source,
                f"{each.rows:,}",
                size(each.size),
                size(each.own),
                str(each.checkpoints),
                each.time[:10],
                ", ".join(each.names),
            ]
            for each in self.snapshots
        ]
        headers = ["snapshot", "source", "rows", "size", "own", "checkpoints", "kept", "names"]
        return Group([Table(headers, rows, align="llrrrrll")])


def listed(ws: Workspace) -> DataList:
    ws.tell_moved(DATA)
    kept = ws.snapshots.all()
    read, names = readers(ws) if kept else {}, ws.snapshots.names()
    holders: dict[str, int] = {}
    for each in kept:
        for sha256 in each.pieces:
            holders[sha256] = holders.get(sha256, 0) + 1
    return DataList(
        [
            Kept(
                each.id,
                [name for name, value in names.items() if value == each.id],
                each.source,
                each.rows,
                sum(each.pieces.values()),
                sum(length for sha256, length in each.pieces.items() if holders[sha256] == 1),
                len(read.get(each.id, ())),
                each.time,
            )
            for each in sorted(kept, key=lambda each: each.time, reverse=True)
        ]
    )


@dataclass(frozen=True)
class ForgetResult:
    """`freed`: bytes that `gc` gives back to the disk; `names` that it had; `checkpoints` that could be made again with it; `source` is
    empty of one that was missing."""

    snapshot: str
    source: str
    names: Sequence[str]
    checkpoints: Sequence[str]
    freed: int
    dry_run: bool

    def view(self) -> View:
        verb = "would remove" if self.dry_run else "removed"
        if not self.source:
            return f"{'would give' if self.dry_run else 'gave'} up {short(self.snapshot)}: `llmos gc` frees what is left of its rows"
        told = f"{verb} {short(self.snapshot)} ({self.source}): {size(self.freed)} to be freed"
        if self.checkpoints:
            told += f"; {counted(len(self.checkpoints), 'checkpoint')} made with it"
        until = f"`llmos undo` brings it back for {WINDOW / 86400:g} days"
        return Lines([told, f"{until}, then `llmos gc` frees its rows (at once: `llmos gc --window now`)"])


def remove(ws: Workspace, name: str, *, force: bool = False, dry_run: bool = False) -> ForgetResult:
    """With the names it has, in one operation; what checkpoints were made with stays unless forced. Its rows stay for `undo`."""
    if gone := [each for each in missing(ws) if len(name) >= 4 and each.startswith(name)]:
        return _given_up(ws, gone[0], dry_run=dry_run)
    kept = ws.snapshots.find(name)
    read = readers(ws).get(kept.id, [])
    if read and not force:
        raise UsageError(
            f"{counted(len(read), 'checkpoint')} made with snapshot {short(kept.id)}: {', '.join(map(short, read[:3]))}{', ...' if read[3:] else ''}",
            hint="`--force` removes it all the same: they can then be made again only from the source itself",
        )
    still = nullcontext() if ws.oplog.rehearsing else lock(ws.snapshots.lock, emit=ws.emit)
    with still, ws.oplog.locked(ws.emit):
        names = [each for each, value in ws.snapshots.names().items() if value == kept.id]
        shared = {sha256 for each in ws.snapshots.all() if each.id != kept.id for sha256 in each.pieces}
        freed = sum(length for sha256, length in kept.pieces.items() if sha256 not in shared)
        if not dry_run:
            path = ws.snapshots.path(kept.id)
            forgotten = Change(str(path.relative_to(ws.root)), path.read_text(encoding="utf-8"), None)
            ws.oplog.apply_locked(
                f"data rm {name}", [*(Change(DATA + each, kept.id, None) for each in names), forgotten]
            )
    return ForgetResult(kept.id, kept.source, names, read, freed, dry_run)


def _given_up(ws: Workspace, snapshot: str, *, dry_run: bool) -> ForgetResult:
    """One of which the list of its pieces is gone: `fsck` misses it no more, and `gc` frees what is left of its rows."""
    made = missing(ws)[snapshot]
    if not dry_run:
        where = str(ws.snapshots.path(snapshot).relative_to(ws.root))
        ws.oplog.apply(f"data rm {short(snapshot)}", [Change(where, _NOTHING, None)], emit=ws.emit)
    return ForgetResult(snapshot, "", (), made, 0, dry_run)


_NOTHING = "{}"
"""Of which `undo` brings nothing back."""
