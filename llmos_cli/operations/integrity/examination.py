"""Hash every byte of a workspace again, and follow every ref: what is damaged, and whom it hurts."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path

from llmos_cli.core import manifest, settings, signatures, snapshots, storage
from llmos_cli.core.dropped import mark_of
from llmos_cli.core.oplog import WINDOW
from llmos_cli.core.protection import marked_by_nobody, undoable, with_ancestors
from llmos_cli.core.refs import DATA, HEADS, SNAPSHOTS, TAGS
from llmos_cli.core.snapshots import readers
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit
from llmos_cli.operations.audit import audited
from llmos_cli.operations.integrity.checkpoint import Examined, Hashes, files_of, inode_of, names_in
from llmos_cli.operations.integrity.giving_up import given_up, tidy
from llmos_cli.operations.integrity.problem import GivenUpFile, Problem, readable
from llmos_cli.operations.integrity.refs import operations, refs
from llmos_cli.operations.integrity.result import FsckResult
from llmos_cli.operations.integrity.runs import of_runs
from llmos_cli.operations.integrity.sealed import Sealing
from llmos_cli.operations.integrity.sharing_again import denied
from llmos_cli.operations.integrity.strangers import links, strangers
from llmos_cli.operations.integrity.tracking import tracking
from llmos_cli.operations.integrity.whole import marks_of_loss, refs_of_runs, strange_signatures, wrong_signature
from llmos_cli.operations.summary import SHORT


def examined(ws: Workspace, key_file: Path | None, emit: Emit) -> FsckResult:
    gone = tuple(given_up(ws))
    freed = ws.dropped.all() - (undoable(ws, time.time() - WINDOW) - {each.checkpoint for each in gone})
    sealing = Sealing(ws, ws.sealed.all() - freed, key_file)
    lost = ws.index.lost()
    checked = [Examined(ws, name, freed=name in freed, lost=lost) for name in names_in(ws.checkpoints)]
    objects = [(name, ws.objects.path(name)) for name in sorted(ws.objects.names())]
    stored = {path: path.stat() for _, path in [*objects, *sealing.files]}
    hashes = Hashes({**stored, **files_of(checked)}, emit)
    problems = [problem for each in checked for problem in each.problems(hashes)]
    problems += (odd := list(_storage(ws)))
    problems += [*_objects(ws, objects, checked, hashes), *sealing.problems(hashes.__getitem__)]
    runs = list(of_runs(ws))
    problems += [each for each in runs if isinstance(each, Problem)]
    sealing.must_fit(key_file)
    with _quiet(ws):
        if ws.writable:
            tidy(ws)
        problems += [problem for look_at in _OF_THE_REST for problem in look_at(ws)]
    bad = {problem.checkpoint for problem in problems}
    ws.index.note_all_file_times(
        {each.name: times for each in checked if each.name not in bad and (times := each.times())}
    )
    kept, mode = {name: stored[path] for name, path in objects}, None if odd else ws.storage
    unshared = {each.name: found for each in checked if each.name not in bad and (found := each.unshared(mode, kept))}
    hurt, unread = _Hurt(ws), {each.checkpoint for each in problems if each.file == manifest.NAME}
    told = (*(hurt.named(problem) for problem in problems), *_snapshots(ws, hurt, unread))
    differed = not ws.index.agrees()
    return FsckResult(
        len(checked),
        hashes.files,
        hashes.bytes,
        told,
        differed,
        index_made_anew=differed and ws.writable,
        sealed=sealing.count,
        opened=sealing.opened,
        unopened=sealing.unopened,
        given_up=gone,
        given_up_files=tuple(each for each in runs if isinstance(each, GivenUpFile)),
        audit_breaks=tuple(ws.oplog.audit.breaks()),
        unshared={name: sum(file.entry.size for file in files) for name, files in unshared.items()},
        denied=denied(mode, chain.from_iterable(unshared.values()), kept),
    )


def _storage(ws: Workspace) -> Iterator[Problem]:
    try:
        storage.read(ws.dot)
    except Corrupt as error:
        yield Problem(f".llmos/{storage.NAME}", error.message.removeprefix(f".llmos/{storage.NAME} "))


def _quiet(ws: Workspace) -> AbstractContextManager[None]:
    """Nobody is in the middle of moving a ref; where nothing can be written, nobody is."""
    return ws.oplog.locked(ws.emit) if ws.writable else nullcontext()


def _objects(
    ws: Workspace, objects: Sequence[tuple[str, Path]], checked: Sequence[Examined], hashes: Hashes
) -> Iterator[Problem]:
    """Damage to an inode that a checkpoint has too was told with the checkpoint."""
    told = {inode_of(status) for status in files_of(checked).values()}
    for name, path in objects:
        if hashes[path].sha256 != name and inode_of(path.stat()) not in told:
            where = str(path.relative_to(ws.root))
            yield Problem(
                where, "has other bytes than its name says; no checkpoint reads it, `llmos fsck --repair` removes it"
            )


def _snapshots(ws: Workspace, hurt: _Hurt, unread: Container[str]) -> Iterator[Problem]:
    """Every piece of data that was kept hashed again, and every row counted; what hurts is that its checkpoints cannot be made again."""
    kept = ws.snapshots
    made = readers(ws, unread) if kept.ids() else {}
    for each in kept.ids():
        if what := kept.damaged(each):
            yield Problem(f".llmos/{SNAPSHOTS}/{each[:SHORT]}", what, hurts=hurt.by(made.get(each, ())), snapshot=each)
    named = {readable(ws, DATA + name)[0] for name in ws.refs.names(DATA)}  # what a name tells of is told with it
    for each, makers in snapshots.lost(ws, unread).items():
        if each not in named and (hurts := hurt.by(makers)):  # else `gc` may be about to take its checkpoints too
            what = f"is missing, and was kept here: `llmos data rm {each[:SHORT]}` gives it up"
            yield Problem(f".llmos/{SNAPSHOTS}/{each[:SHORT]}", what, hurts=hurts, snapshot=each)


def _audit(ws: Workspace) -> Iterator[Problem]:
    if (checked := audited(ws)).wrong:
        yield Problem(".llmos/audit.jsonl", checked.sentence)


def _marks(ws: Workspace) -> Iterator[Problem]:
    for each in ws.dropped.senseless():
        yield Problem(mark_of(each), "is a mark of removed weights, and has bytes that none has", each)
    for each in sorted(marked_by_nobody(ws)):
        what = "says that these weights were removed, which are here and which no operation removed: --repair takes it away"
        yield Problem(mark_of(each), what, each)


def _settings(ws: Workspace) -> Iterator[Problem]:
    if settings.is_missing(ws.root):
        yield Problem(settings.NAME, f"is missing, {settings.UNHEARD}")


def _signatures(ws: Workspace) -> Iterator[Problem]:
    """What can be told without a key: that they are signatures, and of the checkpoint that they are named after."""
    folder = ws.dot / signatures.FOLDER
    signed = {signatures.path(ws.dot, each).name: each for each in signatures.signed(ws.dot)}
    for name in names_in(folder):
        where = f"{folder.relative_to(ws.root)}/{name}"
        if name not in signed:
            yield Problem(where, "is not a signature: llmos did not put it there")
        elif what := wrong_signature(ws, signed[name]):
            yield Problem(where, what, signed[name])


_OF_THE_REST = (
    *(_settings, refs, tracking, operations, _signatures, _audit, strangers, links, _marks),
    *(refs_of_runs, strange_signatures, marks_of_loss),
)
"""What is looked at while nobody moves a ref."""


class _Hurt:
    """Which branches and tags have a damaged checkpoint in their line."""

    def __init__(self, ws: Workspace) -> None:
        self._lines = {
            name: with_ancestors(ws, [checkpoint])
            for prefix in (HEADS, TAGS)
            for name in ws.refs.names(prefix)
            if (checkpoint := readable(ws, prefix + name)[0])
        }

    def named(self, problem: Problem) -> Problem:
        return replace(problem, hurts=self.by([problem.checkpoint or problem.lacks]))

    def by(self, checkpoints: Iterable[str]) -> tuple[str, ...]:
        """Those that have any of these."""
        return tuple(name for name, line in self._lines.items() if not line.isdisjoint(checkpoints))
