"""Refs: names of checkpoints, one small file each, as git keeps them.

    .llmos/HEAD              `ref: refs/heads/main`, or an id when detached
    .llmos/refs/heads/NAME   branches: move when a run commits
    .llmos/refs/tags/NAME    tags: stay
    .llmos/refs/stages/NAME  what a stage of the pipeline made last
    .llmos/refs/runs/RUN     what a run committed: makes it findable, protects nothing
    .llmos/refs/data/NAME    snapshots of data that were given a name (ids of snapshots, see `snapshots.py`, not of checkpoints)
    .llmos/refs/remotes/R/heads/NAME, .../R/tags/NAME      where those of the remote R were when it was last heard of

This file reads and writes single refs. Whatever moves or removes one (but `runs/`, and `remotes/`, which say what was seen) does so through the
operation log (`oplog.py`), which compares before it swaps, under a lock, and can be undone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.listing import entries, is_file, is_folder, plainly
from llmos_cli.errors import Conflict, Corrupt, NotPlain, UsageError

HEAD = "HEAD"
HEADS = "refs/heads/"
TAGS = "refs/tags/"
STAGES = "refs/stages/"
RUNS = "refs/runs/"
DATA = "refs/data/"
SNAPSHOTS = "snapshots"
"""The folder of what `DATA` names."""
REMOTES = "refs/remotes/"
MOVED = (HEADS, TAGS, STAGES, DATA)
"""Those that operations move, beside HEAD."""
SYMBOLIC = "ref: "
FIRST = f"{SYMBOLIC}{HEADS}main"
"""What HEAD says before any operation moves it."""
ID = re.compile(r"[0-9a-f]{64}")
_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


@dataclass(frozen=True)
class Head:
    """`branch` is None when HEAD is detached, `checkpoint` is None while the branch has none yet."""

    branch: str | None
    checkpoint: str | None

    @property
    def name(self) -> str:
        """The branch, or the id of a detached HEAD."""
        return self.branch or self.checkpoint or ""


class Refs:
    def __init__(self, dot: Path) -> None:
        self._dot = dot
        self._root = f"{dot}/"

    def read(self, name: str) -> str | None:
        """What a ref says (an id; for HEAD perhaps `ref: NAME`), None when there is no such ref."""
        try:
            with open(self._root + name, encoding="utf-8", errors="replace", opener=plainly) as file:
                value = file.read().strip()
        except (FileNotFoundError, NotADirectoryError, NotPlain):
            return None
        if not ID.fullmatch(value) and not (name == HEAD and _is_symbolic(value)):
            raise Corrupt(
                f"{name} holds {value[:80]!r}, which is no checkpoint id",
                hint="`llmos fsck --repair` puts back what the log of operations says",
            )
        return value

    def senseless(self, name: str) -> bool:
        """Whether it holds what no ref can say, or is a HEAD that is not there: that may be overwritten, whatever it was."""
        try:
            return self.read(name) is None and name == HEAD
        except Corrupt:
            return True

    def write(self, name: str, value: str | None) -> None:
        """Set or, with None, remove a ref, unconditionally: see `oplog.py` for who may. Those with a `/` in their names are written
        under the lock of the refs alone, so that nobody takes away a folder that another is about to need."""
        path = self._dot / name
        if value is None:
            atomic.remove(path)
            self._prune(path.parent)
        else:
            self._make_room(path)
            atomic.write_text(path, value + "\n", scratch=self._dot / "tmp")

    def _prune(self, folder: Path) -> None:
        """Take away what holds no ref any more, up to `heads/` or `tags/`: a folder `a/` would be in the way of a branch `a`."""
        while len(folder.relative_to(self._dot).parts) > 2:
            try:
                folder.rmdir()
            except OSError:  # another ref is in it
                return
            folder = folder.parent
            atomic.sync_directory(folder)

    def _make_room(self, path: Path) -> None:
        """An empty tree of folders in a ref's place is what a kill left of another."""
        if not path.is_dir() or path.is_symlink():
            return
        for folder, _, files in os.walk(path, topdown=False):
            if files:
                raise Conflict(
                    f"{Path(folder, files[0]).relative_to(self._dot.parent)} stands in the way of {path.relative_to(self._dot)}",
                    hint="move it away, and try again",
                )
            with atomic.refusals(folder):
                Path(folder).rmdir()
        atomic.sync_directory(path.parent)

    def in_the_way(self, name: str, leaving: Container[str] = ()) -> str | None:
        """The ref that would have to be a folder for this one to be written, or one that lies where its file would be."""
        parts = name.split("/")
        above = (ref for end in range(3, len(parts)) if (self._dot / (ref := "/".join(parts[:end]))).is_file())
        below = (f"{name}/{each}" for each in self.names(f"{name}/"))
        return next((ref for ref in (*above, *below) if ref not in leaving), None)

    def head(self) -> Head:
        value = self.read(HEAD)
        if value is None:
            raise Corrupt("HEAD is missing", hint="`llmos fsck --repair` or `llmos checkout BRANCH` writes it anew")
        if value.startswith(SYMBOLIC):
            ref = value.removeprefix(SYMBOLIC)
            return Head(ref.removeprefix(HEADS), self.read(ref))
        return Head(None, value)

    def alike(self, made: Iterable[str], leaving: Container[str] = ()) -> dict[str, str]:
        """Of branches, tags and names of data that are to be made those that some disks would take for one that is there, and that one."""
        from llmos_cli.core.names import all_in_the_way  # here: most commands make none

        found: dict[str, str] = {}
        wanted = list(made)
        for prefix in (HEADS, TAGS, DATA):
            if own := [ref for ref in wanted if ref.startswith(prefix)]:
                there = (ref for each in self.names(prefix) if (ref := prefix + each) not in leaving)
                found |= all_in_the_way(own, there)
        return found

    def under(self, prefix: str) -> dict[str, str]:
        """Short name -> id of all refs below a prefix (`HEADS`, `TAGS`, `STAGES`, `RUNS`), sorted by name."""
        return {name: value for name in sorted(self.names(prefix)) if (value := self.read(prefix + name))}

    def names(self, prefix: str) -> Iterator[str]:
        return (name for name, entry in _below(self._root + prefix, "") if is_file(entry) and _is_ref(prefix + name))

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among the refs and is no plain file, or is called as no ref can be."""
        return (entry for name, entry in _below(f"{self._root}refs", "refs/") if not (is_file(entry) and _is_ref(name)))

    def all_named(self) -> set[str]:
        """Checkpoints that any ref names, those of runs and of remotes among them."""
        prefixes = (HEADS, TAGS, STAGES, RUNS, REMOTES)
        found = {value for prefix in prefixes for value in self.under(prefix).values()}
        return found | ({head} if (head := self.head().checkpoint) else set())

    def pointing(self) -> dict[str, list[str]]:
        """Id -> short names of the branches and tags that name it, `stages/NAME`, and those of remotes (`origin/main`)."""
        found: dict[str, list[str]] = {}
        for prefix, shown in ((HEADS, ""), (TAGS, ""), (STAGES, "stages/")):
            for name, value in self.under(prefix).items():
                found.setdefault(value, []).append(shown + name)
        for name, value in self.under(REMOTES).items():
            remote, _, branch = name.partition("/heads/")
            if branch:
                found.setdefault(value, []).append(f"{remote}/{branch}")
        return found


def _is_name(name: str) -> bool:
    return bool(name) and not (
        _BAD.search(name)
        or name.startswith("-")
        or name in (HEAD, "@")
        or any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in name.split("/"))
        or len(name.encode(errors="replace")) > 200
        or not name.isprintable()
    )


def _is_ref(ref: str) -> bool:
    """Of one of the kinds, and of branches and tags called as these may be."""
    kind = next((prefix for prefix in (*MOVED, RUNS, REMOTES) if ref.startswith(prefix)), None)
    return kind is not None and (kind not in (HEADS, TAGS) or _is_name(ref.removeprefix(kind)))


def _is_symbolic(value: str) -> bool:
    return value.startswith(SYMBOLIC + HEADS) and not _BAD.search(value.removeprefix(SYMBOLIC))


def _below(directory: str, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    for entry in entries(directory):
        if is_folder(entry):
            yield from _below(entry.path, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def check_name(kind: str, name: str) -> str:
    """A name that is fit for a ref, by git's rules; UsageError otherwise. `kind` is `branch` or `tag`."""
    if not _is_name(name):
        raise UsageError(
            f"{name!r} is not a name for a {kind}",
            hint="letters, digits, `-`, `_`, `.` and `/` are fine: `base`, `try/wanda-50`",
        )
    if ID.fullmatch(name):
        raise UsageError(f"{name!r} looks like a checkpoint id", hint=f"choose another name for the {kind}")
    return name
