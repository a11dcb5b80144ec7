"""fsck: hash every byte again, follow every ref, and say what is damaged and whom it hurts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import manifest, records
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.objects import cores, files_below, hash_file
from llmos_cli.core.protection import with_ancestors
from llmos_cli.core.refs import HEADS, ID, RUNS, STAGES, TAGS
from llmos_cli.core.view import Group, Table, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit, Progress, ignore
from llmos_cli.operations.summary import SHORT

_OFTEN = 0.5
"""Seconds between two words on how far it is."""


@dataclass(frozen=True)
class Problem:
    """`where`: a path in the workspace or a ref; `hurts`: branches and tags whose line has the damaged checkpoint."""

    where: str
    what: str
    checkpoint: str = ""
    hurts: tuple[str, ...] = ()


@dataclass(frozen=True)
class FsckResult:
    checkpoints: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def sentence(self) -> str:
        count = len(self.problems)
        hurt = sorted({name for problem in self.problems for name in problem.hurts})
        return f"{count} thing{'s are' if count > 1 else ' is'} damaged" + (
            f"; hurt: {', '.join(hurt)}" if hurt else ""
        )

    def view(self) -> View:
        checked = f"{self.checkpoints} checkpoints, {self.files} files, {size(self.bytes)} hashed"
        if not self.problems:
            return f"{checked}: everything is as it was saved"
        rows = [[each.where, each.what, ", ".join(each.hurts)] for each in self.problems]
        return Group([Table(["where", "what", "hurts"], rows, align="lll"), f"{checked}: {len(self.problems)} damaged"])


def fsck(ws: Workspace, *, emit: Emit = ignore) -> FsckResult:
    checked = [_Checked(ws, name) for name in _names(ws.checkpoints)]
    objects = [(name, Path(entry.path)) for name, entry in ws.objects.names()]
    hashes = _Hashes([*(path for each in checked for path in each.files()), *(path for _, path in objects)], emit)
    problems = [problem for each in checked for problem in each.problems(hashes)]
    problems += [*_objects(ws, objects, checked, hashes), *_refs(ws), *_runs(ws)]
    for each in checked:
        each.note_good(problems)
    hurt = _Hurt(ws)
    return FsckResult(len(checked), hashes.files, hashes.bytes, tuple(hurt.named(problem) for problem in problems))


class _Hashes:
    """Hashes of files, computed on all cores, of each inode once: hard links are one file."""

    def __init__(self, paths: Sequence[Path], emit: Emit) -> None:
        self._inodes = {path: _inode(path) for path in paths}
        one_each = {inode: path for path, inode in self._inodes.items()}
        self.files = len(one_each)
        self.bytes = sum(path.stat().st_size for path in one_each.values())
        self._found: dict[tuple[int, int], FileEntry] = {}
        total = self.bytes // 1_000_000
        done, told_at = 0, time.monotonic()
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            for inode, entry in zip(one_each, pool.map(hash_file, one_each.values()), strict=True):
                self._found[inode] = entry
                done += entry.size
                if time.monotonic() - told_at > _OFTEN:
                    told_at = time.monotonic()
                    emit(Progress("fsck", done // 1_000_000, total, "MB"))
        if total:
            emit(Progress("fsck", total, total, "MB"))

    def __getitem__(self, path: Path) -> FileEntry:
        return self._found[self._inodes[path]]


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


class _Checked:
    """One checkpoint directory under examination."""

    def __init__(self, ws: Workspace, name: str) -> None:
        self._ws = ws
        self._name = name
        self._directory = ws.checkpoints / name
        self._manifest: Manifest | None = None
        self._error = ""
        self._read()

    def _read(self) -> None:
        if not ID.fullmatch(self._name) or not self._directory.is_dir():
            self._error = "is not a checkpoint: llmos did not put it there"
            return
        try:
            self._manifest = manifest.read(self._directory)
        except Corrupt as error:
            self._error = error.message

    def files(self) -> Iterator[Path]:
        """Those that are there to be hashed."""
        for name in self._manifest.tree if self._manifest else ():
            path = self._directory / name
            if path.is_file() and not path.is_symlink():
                yield path

    def problems(self, hashes: _Hashes) -> Iterator[Problem]:
        if self._manifest is None:
            yield self._problem("", self._error)
            return
        found = self._manifest
        if manifest.identify(found.tree, found.made) != self._name or found.id != self._name:
            yield self._problem(manifest.NAME, "was altered: its hash is not the checkpoint's id")
        for parent in found.made.parents:
            if not (self._ws.checkpoints / parent).is_dir():
                yield self._problem("", f"its parent {parent[:SHORT]} is missing")
        if self._name not in self._ws.dropped:
            yield from self._damaged(found, hashes)
        yield from self._extra(found.tree, "does not belong to the checkpoint")

    def _damaged(self, found: Manifest, hashes: _Hashes) -> Iterator[Problem]:
        present = set(self.files())
        for name, entry in found.tree.items():
            path = self._directory / name
            if path not in present:
                yield self._problem(name, "is missing")
            elif hashes[path] != entry:
                yield self._problem(name, _difference(hashes[path], entry))

    def _extra(self, tree: Mapping[str, FileEntry], what: str) -> Iterator[Problem]:
        for name in files_below(self._directory):
            if name not in tree and name != manifest.NAME:
                yield self._problem(name, what)

    def _problem(self, name: str, what: str) -> Problem:
        where = f"checkpoints/{self._name[:SHORT]}" + (f"/{name}" if name else "")
        return Problem(where, what, self._name)

    def note_good(self, problems: Sequence[Problem]) -> None:
        """Files that have just been hashed need not be hashed again because a copy changed their times."""
        times = {path.relative_to(self._directory).as_posix(): path.stat().st_mtime_ns for path in self.files()}
        if times and all(problem.checkpoint != self._name for problem in problems):
            self._ws.index.note_file_times(self._name, times)


def _difference(found: FileEntry, entry: FileEntry) -> str:
    if found.size != entry.size:
        return f"has {found.size:,} bytes instead of {entry.size:,}"
    return "has other bytes than were saved"


def _objects(
    ws: Workspace, objects: Sequence[tuple[str, Path]], checked: Sequence[_Checked], hashes: _Hashes
) -> Iterator[Problem]:
    """Damage to an inode that a checkpoint has too was told with the checkpoint."""
    told = {_inode(path) for each in checked for path in each.files()}
    for name, path in objects:
        if hashes[path].sha256 != name and _inode(path) not in told:
            where = str(path.relative_to(ws.root))
            yield Problem(where, "has other bytes than its name says; no checkpoint reads it, `llmos gc` removes it")


def _refs(ws: Workspace) -> Iterator[Problem]:
    yield from _told(lambda: _dangling("HEAD", ws.head().checkpoint, ws), "HEAD")
    for prefix in (HEADS, TAGS, STAGES, RUNS):
        for name in sorted(ws.refs.names(prefix)):
            ref = prefix + name
            yield from _told(lambda ref=ref: _dangling(ref, ws.refs.read(ref), ws), ref)  # type: ignore[misc]


def _told(check: Callable[[], str | None], ref: str) -> Iterator[Problem]:
    try:
        problem = check()
    except Corrupt as error:
        problem = error.message
    if problem:
        yield Problem(ref, problem)


def _dangling(ref: str, checkpoint: str | None, ws: Workspace) -> str | None:
    if checkpoint is None or (ws.checkpoints / checkpoint).is_dir():
        return None
    return f"names {checkpoint[:SHORT]}, which is missing"


def _runs(ws: Workspace) -> Iterator[Problem]:
    """A line that a crash cut short at the end is no damage; one that makes no sense in the middle is."""
    for name in _names(ws.root / "runs"):
        path = ws.root / "runs" / name / records.EVENTS
        if not path.is_file():
            yield Problem(f"runs/{name}", f"has no {records.EVENTS}")
            continue
        bad = [number for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1) if not _is_json(line)]
        if bad:
            yield Problem(
                f"runs/{name}/{records.EVENTS}",
                f"line {bad[0]} is not JSON" + (f" ({len(bad)} such)" if len(bad) > 1 else ""),
            )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class _Hurt:
    """Which branches and tags have a damaged checkpoint in their line."""

    def __init__(self, ws: Workspace) -> None:
        self._lines = {
            name: with_ancestors(ws, [checkpoint])
            for prefix in (HEADS, TAGS)
            for name in ws.refs.names(prefix)
            if (checkpoint := _readable(ws, prefix + name))
        }

    def named(self, problem: Problem) -> Problem:
        hurts = (
            tuple(name for name, line in self._lines.items() if problem.checkpoint in line)
            if problem.checkpoint
            else ()
        )
        return Problem(problem.where, problem.what, problem.checkpoint, hurts)


def _readable(ws: Workspace, ref: str) -> str | None:
    try:
        return ws.refs.read(ref)
    except Corrupt:
        return None


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
