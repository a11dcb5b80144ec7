"""fsck: hash every byte again, follow every ref, and say what is damaged and whom it hurts."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from llmos_cli.core import kept, manifest, records, settings, signatures
from llmos_cli.core.audit import Break
from llmos_cli.core.dropped import mark_of
from llmos_cli.core.endings import EDITED, altered, not_json
from llmos_cli.core.listing import entries, folders, is_file, is_folder, read_bytes
from llmos_cli.core.oplog import WINDOW
from llmos_cli.core.protection import marked_by_nobody, undoable, with_ancestors
from llmos_cli.core.refs import HEADS, ID, SNAPSHOTS, TAGS
from llmos_cli.core.snapshots import readers
from llmos_cli.core.view import Group, Lines, Table, View, short, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations.audit import audited, told_break
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.integrity import giving_up_files
from llmos_cli.operations.integrity.begun_anew import begin_anew, logs_in
from llmos_cli.operations.integrity.checkpoint import Examined, Hashes, files_of, inode_of, names_in
from llmos_cli.operations.integrity.giving_up import GivenUp, accept, given_up, lost_ones, tidy, what_is_lost
from llmos_cli.operations.integrity.problem import GivenUpFile, Problem, Repaired, more, readable
from llmos_cli.operations.integrity.refs import operations, refs
from llmos_cli.operations.integrity.sealed import Sealing, key_at_hand, way_back
from llmos_cli.operations.integrity.sharing_again import Denied, denied, share_again
from llmos_cli.operations.integrity.strangers import in_the_way, not_plain, strangers
from llmos_cli.operations.integrity.whole import missing_signatures, refs_of_runs, wrong_signature
from llmos_cli.operations.summary import SHORT

_INDEX_DIFFERED = {
    True: "the index differed from the files, and was made anew",
    False: "the index differs from the files, and was not used: `llmos fsck` makes it anew where it may write",
}


@dataclass(frozen=True)
class FsckResult:
    """`index_differed` from the files, and was made anew where the workspace can be written; `repaired`: what was damaged before, and where good bytes were;
    `sealed`: how many checkpoints are, `opened`: how many of them the key at hand opens, which were decrypted and compared too."""

    checkpoints: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]
    index_differed: bool = False
    repaired: tuple[Repaired, ...] = ()
    index_made_anew: bool = False
    sealed: int = 0
    opened: int = 0
    unopened: int = 0
    """Sealed ones of which the key at hand is that, and that it does not open: they are damaged."""
    given_up: tuple[GivenUp, ...] = ()
    """What is lost for good, and no damage since somebody said so (`--accept-loss`)."""
    given_up_files: tuple[GivenUpFile, ...] = ()
    audit_breaks: tuple[Break, ...] = ()
    unshared: Mapping[str, int] = field(default_factory=dict)
    """Checkpoint -> bytes that share nothing with an object: no damage, but `du` counts on it."""
    denied: Denied = field(default_factory=Denied)
    """What of that this user cannot link, and who can."""
    lost: tuple[str, ...] = ()
    """Checkpoints that repairing did not bring back, or not the weights of: what `--accept-loss` gives up."""
    clear: Mapping[str, str] = field(default_factory=dict)
    """Sealed checkpoints that are damaged -> the name of a remote that has them in the clear: what the key of the seal repairs."""

    @property
    def sentence(self) -> str:
        count = len(self.problems)
        hurt = sorted({name for problem in self.problems for name in problem.hurts})
        return f"{count} thing{'s are' if count > 1 else ' is'} damaged" + (
            f"; hurt: {', '.join(hurt)}" if hurt else ""
        )

    def view(self) -> View:
        checkpoints, files = counted(self.checkpoints, "checkpoint"), counted(self.files, "file")
        checked = f"{checkpoints}, {files}, {size(self.bytes)} hashed"
        rows = [[each.where, each.what, ", ".join(each.hurts)] for each in self.problems]
        verdict = f"{len(rows)} damaged" if rows else "everything is as it was saved"
        return Group(
            [
                Lines([each.told for each in self.repaired]),
                _INDEX_DIFFERED[self.index_made_anew] if self.index_differed else "",
                Table(["where", "what", "hurts"], rows, align="lll") if rows else "",
                Lines(
                    [
                        *(each.told for each in self.given_up),
                        *(each.told for each in self.given_up_files),
                        *map(told_break, self.audit_breaks),
                    ]
                ),
                Lines(
                    [*self._told_unshared(), f"{checked}: {verdict}", *([self._told_sealed()] if self.sealed else [])]
                ),
            ]
        )

    def _told_unshared(self) -> Iterator[str]:
        if self.unshared:
            of = f"{size(sum(self.unshared.values()))} of {counted(len(self.unshared), 'checkpoint')}"
            yield f"{of} share nothing with .llmos/objects: what is equal would be stored again, and `du` takes it for shared; {self._told_links()}"

    def _told_links(self) -> str:
        """Only what --repair will do for this user."""
        if not self.denied.size:
            return "--repair links them"
        if self.denied.size == sum(self.unshared.values()):
            return f"--repair by {self.denied.who} or root links them"
        return f"--repair links them, but for {size(self.denied.size)}, which it links for {self.denied.who} or root"

    def _told_sealed(self) -> str:
        """What this says of what cannot be read."""
        rest = self.sealed - self.opened - self.unopened
        inside = [f"{self.opened} decrypted and compared with the manifest"] if self.opened else []
        inside += [f"{self.unopened} not decrypted, being damaged"] if self.unopened else []
        inside += [f"{rest} not decrypted: --key-file or LLMOS_KEY would"] if rest else []
        return f"{self.sealed} sealed, {', '.join(inside)}"


def fsck(
    ws: Workspace,
    *,
    repair: bool = False,
    accept_loss: Sequence[str] = (),
    key_file: Path | None = None,
    emit: Emit = ignore,
) -> FsckResult:
    """`key_file`: of what is sealed, to look inside; without it LLMOS_KEY, where that is set. `accept_loss`: revisions to be given up,
    unless repairing brings them back: what somebody has is no loss."""
    if odd := tuple(in_the_way(ws)):
        return FsckResult(0, 0, 0, odd)
    logs = logs_in(ws, accept_loss)
    files = giving_up_files.named(ws, accept_loss)
    lost = lost_ones(ws, [each for each in accept_loss if each not in {*logs, *files}])
    found = _checked(ws, key_file, emit)
    if not ((found.problems or found.unshared) and (repair or lost or logs or files)):
        return found
    begin_anew(ws, logs)  # first: refs go back to where a log says that they were
    repaired: list[Repaired] = []
    with _telling(repaired, emit):
        clear, silent = _put_back(ws, found, repaired, key_file, emit) if repair or lost or files else ({}, ())
        _must_be_nowhere(ws, lost, files, clear, silent)
        accept(ws, lost)
        giving_up_files.accept(ws, files)
        again = _checked(ws, key_file, emit)
    rest = list(_lost(ws, again.problems))
    return replace(
        again,
        index_differed=found.index_differed,
        index_made_anew=found.index_made_anew,
        repaired=tuple(repaired),
        lost=tuple(each for each in rest if each not in clear),
        clear={each: clear[each] for each in rest if each in clear},
    )


def _lost(ws: Workspace, problems: Sequence[Problem]) -> Iterator[str]:
    hurt = {each.lacks or each.checkpoint for each in problems} - {""}
    return (each for each in sorted(hurt) if ID.fullmatch(each) and what_is_lost(ws, each))


@contextmanager
def _telling(repaired: Sequence[Repaired], emit: Emit) -> Iterator[None]:
    """Whatever ends the block early: what was repaired by then is told."""
    try:
        yield
    except BaseException:
        for each in repaired:
            emit(Note(each.told))
        raise


def _must_be_nowhere(
    ws: Workspace, lost: Sequence[str], files: Sequence[str], clear: Mapping[str, str], silent: Sequence[str]
) -> None:
    """What a remote has is no loss, and what it may have is not given up because nobody could ask it."""
    for each in (each for each in lost if each in clear and what_is_lost(ws, each)):
        raise Conflict(f"{clear[each]} has {short(each)} in the clear: it is no loss", hint=way_back(each))
    if silent and (any(what_is_lost(ws, each) for each in lost) or giving_up_files.still_wrong(ws, files)):
        names = " and ".join(silent)
        raise Conflict(
            f"{names} could not be asked whether what would be given up is there: nothing was",
            hint=f"try again once it can be reached; `llmos remote rm {silent[0]}` if it is gone for good",
        )


def _put_back(
    ws: Workspace, found: FsckResult, repaired: list[Repaired], key_file: Path | None, emit: Emit
) -> tuple[Mapping[str, str], Sequence[str]]:
    """Sealed checkpoints that were damaged -> who has them in the clear, and the names of remotes that could not be asked."""
    from llmos_cli.operations.integrity import repairing  # here: it knows remotes, and is seldom needed

    whole = found.unshared.keys() - {each.checkpoint for each in found.problems}
    asked = repairing.Asked()
    try:
        if found.problems:
            repaired += repairing.repair_settings(ws)
            asked = repairing.ask(ws, found.problems, emit)
            key = key_at_hand(key_file) if found.sealed else None
            repaired.extend(repairing.repair(ws, found.problems, asked, key, emit))
        repaired += share_again(ws, whole, emit)
    finally:
        if repaired:
            ws.oplog.note(f"fsck --repair: {', '.join(each.where for each in repaired)}")
    return asked.clear, asked.silent


def _checked(ws: Workspace, key_file: Path | None, emit: Emit) -> FsckResult:
    gone = tuple(given_up(ws))
    freed = ws.dropped.all() - (undoable(ws, time.time() - WINDOW) - {each.checkpoint for each in gone})
    sealing = Sealing(ws, ws.sealed.all() - freed, key_file)
    lost = ws.index.lost()
    checked = [Examined(ws, name, freed=name in freed, lost=lost) for name in names_in(ws.checkpoints)]
    objects = [(name, ws.objects.path(name)) for name in sorted(ws.objects.names())]
    stored = {path: path.stat() for _, path in [*objects, *sealing.files]}
    hashes = Hashes({**stored, **files_of(checked)}, emit)
    problems = [problem for each in checked for problem in each.problems(hashes)]
    problems += [*_objects(ws, objects, checked, hashes), *sealing.problems(hashes.__getitem__)]
    runs = list(_runs(ws))
    problems += [each for each in runs if isinstance(each, Problem)]
    sealing.must_fit(key_file)
    with _quiet(ws):
        if ws.writable:
            tidy(ws)
        problems += [Problem(settings.NAME, f"is missing, {settings.UNHEARD}")] if settings.is_missing(ws.root) else []
        problems += [*refs(ws), *operations(ws), *_signatures(ws), *_audit(ws), *strangers(ws), *_marks(ws)]
        problems += [*refs_of_runs(ws), *missing_signatures(ws)]
    bad = {problem.checkpoint for problem in problems}
    ws.index.note_all_file_times(
        {each.name: times for each in checked if each.name not in bad and (times := each.times())}
    )
    kept = {name: stored[path] for name, path in objects}
    unshared = {each.name: found for each in checked if each.name not in bad and (found := each.unshared(kept))}
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
        denied=denied(ws.storage, chain.from_iterable(unshared.values()), kept),
    )


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


def _audit(ws: Workspace) -> Iterator[Problem]:
    if (checked := audited(ws)).wrong:
        yield Problem(".llmos/audit.jsonl", checked.sentence)


def _marks(ws: Workspace) -> Iterator[Problem]:
    for each in sorted(marked_by_nobody(ws)):
        what = "says that these weights were removed, which are here and which no operation removed: --repair takes it away"
        yield Problem(mark_of(each), what, each)


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


def _runs(ws: Workspace) -> Iterator[Problem | GivenUpFile]:
    """A line that a crash cut short at the end is no damage; one that makes no sense in the middle is."""
    for name in folders(ws.root / "runs"):
        events = (folder := ws.root / "runs" / name) / records.EVENTS
        strange = [Path(each.path) for each in entries(folder) if not (is_file(each) or is_folder(each))]
        yield from (not_plain(ws, path) for path in strange)
        if events not in strange:
            yield from _run(name, folder) if events.is_file() else [Problem(f"runs/{name}", f"has no {records.EVENTS}")]


def _run(name: str, folder: Path) -> Iterator[Problem | GivenUpFile]:
    given = kept.hashed(folder)
    text, where = read_bytes(folder / records.EVENTS), f"runs/{name}/{records.EVENTS}"
    if altered(text):
        yield Problem(where, EDITED, run=name)
    if bad := not_json(text):
        yield Problem(where, f"line {bad[0]} is not JSON" + more(bad), run=name)
    for file, what in kept.differing(text, given):
        yield Problem(f"runs/{name}/{file}", what, run=name)
    yield from (GivenUpFile(f"runs/{name}/{file}") for file in kept.given_up(text, given))


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
