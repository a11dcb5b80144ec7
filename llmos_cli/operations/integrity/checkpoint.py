"""One checkpoint under examination: every byte of its files hashed again, and its manifest held against them."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from llmos_cli.core import manifest
from llmos_cli.core.listing import entries, read_bytes
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.objects import cores, files_below, hash_file
from llmos_cli.core.refs import ID
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit, Progress
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.integrity.sharing_again import File, Stored
from llmos_cli.operations.strays import FOLDER
from llmos_cli.operations.summary import SHORT

_OFTEN = 0.5
"""Seconds between two words on how far it is."""


class Hashes:
    """Hashes of files, computed on all cores, of each inode once: hard links are one file."""

    def __init__(self, files: Mapping[Path, os.stat_result], emit: Emit) -> None:
        self._inodes = {path: inode_of(status) for path, status in files.items()}
        one_each = {inode: path for path, inode in self._inodes.items()}
        self.files = len(one_each)
        self.bytes = sum(files[path].st_size for path in one_each.values())
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


def inode_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def files_of(checked: Sequence[Examined]) -> dict[Path, os.stat_result]:
    return {path: status for each in checked for path, status in each.files.values()}


class Examined:
    """One checkpoint directory under examination; `freed`: its weights were removed, and `undo` needs them no more. Where it could
    bring them back but none of them came (from a backup, say), it has nothing to bring. `lost`: what was given up, manifest and all."""

    def __init__(self, ws: Workspace, name: str, *, freed: bool, lost: Container[str]) -> None:
        self._ws = ws
        self._lost = lost
        self.name = name
        self._freed = freed
        self._directory = ws.checkpoints / name
        self._manifest: Manifest | None = None
        self._error = ""
        self._read()
        self.files = self._there()
        """Those that are there to be hashed, by name."""

    def _read(self) -> None:
        if not ID.fullmatch(self.name) or not self._directory.is_dir():
            self._error = "is not a checkpoint: llmos did not put it there"
            return
        try:
            self._manifest = manifest.as_it_stands(self._directory)
        except Corrupt as error:
            self._error = error.message

    def _there(self) -> dict[str, tuple[Path, os.stat_result]]:
        found = {}
        for name in self._manifest.tree if self._manifest else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path = self._directory / name
                if stat.S_ISREG((status := path.lstat()).st_mode):
                    found[name] = path, status
        return found

    def problems(self, hashes: Hashes) -> Iterator[Problem]:
        if self.name in self._lost:
            return
        if self._manifest is None:
            file = manifest.NAME if self._directory.is_dir() and ID.fullmatch(self.name) else ""
            yield replace(self._problem("", self._error), file=file)
            return
        found = self._manifest
        if not found.is_of(self.name):
            yield self._problem(manifest.NAME, "was altered: its hash is not the checkpoint's id")
        elif not found.is_written(read_bytes(self._directory / manifest.NAME)):
            yield self._problem(manifest.NAME, "was altered, though it means the same")
        for parent in found.made.parents:
            if not ((self._ws.checkpoints / parent).is_dir() or parent in self._lost):
                shown = apart(parent, names_in(self._ws.checkpoints))
                yield replace(self._problem("", f"its parent {shown} is missing"), lacks=parent)
        if self.name in self._ws.sealed and not self._freed:
            open_ = self._extra({}, "is in the clear, and the checkpoint is sealed: `llmos gc` removes it")
            yield from (replace(each, file="") for each in open_)
            return
        if not self._freed and not (self.name in self._ws.dropped and not self.files):
            yield from self._damaged(found, hashes)
        yield from self._extra(
            found.tree, f"does not belong to the checkpoint, which is whole without: --repair moves it to {FOLDER}"
        )

    def _damaged(self, found: Manifest, hashes: Hashes) -> Iterator[Problem]:
        for name, entry in found.tree.items():
            if name not in self.files:
                yield self._problem(name, "is missing")
            elif (now := hashes[self.files[name][0]]) != entry:
                yield self._problem(name, _difference(now, entry))

    def _extra(self, tree: Mapping[str, FileEntry], what: str) -> Iterator[Problem]:
        for name in files_below(self._directory):
            if name not in tree and name != manifest.NAME:
                yield self._problem(name, what)

    def _problem(self, name: str, what: str) -> Problem:
        where = f"checkpoints/{self.name[:SHORT]}" + (f"/{name}" if name else "")
        return Problem(where, what, self.name, name)

    def unshared(self, storage: str | None, stored: Stored) -> list[File]:
        """Those that share nothing with an object, of what has its weights in the clear."""
        if self._manifest is None or self._freed or self.name in self._ws.sealed or self.name in self._lost:
            return []
        tree = self._manifest.tree
        files = (File(self.name, path, tree[name], status) for name, (path, status) in self.files.items())
        return [file for file in files if not file.shares(storage, stored)]

    def times(self) -> dict[str, int]:
        """Files that have just been hashed need not be hashed again because a copy changed their times."""
        return {name: status.st_mtime_ns for name, (_, status) in self.files.items()}


def _difference(found: FileEntry, entry: FileEntry) -> str:
    if found.size != entry.size:
        return f"has {found.size:,} bytes instead of {entry.size:,}"
    return "has other bytes than were saved"


def names_in(folder: Path) -> list[str]:
    return [entry.name for entry in entries(folder)]
