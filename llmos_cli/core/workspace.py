"""The workspace: one folder, found from any folder inside it, that holds the life of a model.

    my-model/
      llmos.yaml            settings; `format: 1`
      configs/              one YAML per verb, the user's to edit
      checkpoints/<id>/     plain model directories, read-only, each with its manifest.json
      runs/<id>/            what every operation did
      .llmos/               HEAD refs/ objects/ operations.jsonl index.sqlite locks/ tmp/ cache/

No path in it is absolute: a workspace that was moved goes on working.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmos_cli.core import atomic, manifest, revisions, runs
from llmos_cli.core.dropped import Dropped
from llmos_cli.core.index import Index
from llmos_cli.core.manifest import FileEntry, Made, Manifest
from llmos_cli.core.objects import Objects, files_below, hash_file, hash_files
from llmos_cli.core.oplog import OperationLog
from llmos_cli.core.processes import Process, host, this_process
from llmos_cli.core.refs import HEAD, HEADS, SYMBOLIC, Head, Refs
from llmos_cli.core.runs import Run, Runs
from llmos_cli.errors import Corrupt, LlmosError, NotFound, UsageError
from llmos_cli.events import Emit, Metric, ignore

FORMAT = 1
DOT = ".llmos"
_FORMAT_LINE = re.compile(rb"^format[ \t]*:[ \t]*['\"]?(\d+)", re.MULTILINE)
_FSCK = "`llmos fsck` tells what else is affected"


@dataclass(frozen=True)
class Checkpoint:
    """`path` is a directory that transformers loads; its files' sizes and times have been checked."""

    id: str
    path: Path
    manifest: Manifest


class Workspace:
    """`emit` hears of waiting for locks; commands set it to the terminal's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dot = root / DOT
        self.configs = root / "configs"
        self.cache = self.dot / "cache"
        self.name = root.name
        self.checkpoints = root / "checkpoints"
        self.refs = Refs(self.dot)
        self.oplog = OperationLog(root, self.dot, self.refs)
        self.dropped = Dropped(self.dot)
        self.emit: Emit = ignore

    def __reduce__(self) -> tuple[type[Workspace], tuple[Path]]:
        return Workspace, (self.root,)  # to a worker process: open files and connections stay here

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The nearest workspace at or above `start` (the current folder)."""
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / DOT / HEAD).is_file():
                _check_format(folder / "llmos.yaml")
                return cls(folder)
        raise NotFound(f"there is no workspace in {here} or above it", hint="`llmos init` makes one here")

    @classmethod
    def create(cls, directory: Path) -> Workspace:
        """Make the skeleton; `.llmos/HEAD` comes last, and only with it is it a workspace."""
        root = directory.resolve()
        if (root / DOT / HEAD).exists():
            raise UsageError(f"{root} is a workspace already", hint="`llmos status` shows it")
        for folder in ("configs", "checkpoints", "runs", f"{DOT}/refs/heads", f"{DOT}/tmp", f"{DOT}/cache"):
            with atomic.refusals(root):
                atomic.make_directory(root / folder)
        if not (root / "llmos.yaml").exists():
            atomic.write_text(root / "llmos.yaml", f"format: {FORMAT}\n")
        atomic.write_text(root / DOT / HEAD, f"{SYMBOLIC}{HEADS}main\n")
        return cls(root)

    @cached_property
    def index(self) -> Index:
        return Index(self.root, self.dot)

    @cached_property
    def objects(self) -> Objects:
        return Objects(self.dot)

    @cached_property
    def runs(self) -> Runs:
        return Runs(self)

    def head(self) -> Head:
        return self.refs.head()

    def resolve(self, rev: str = "HEAD") -> str:
        """The full id of a revision; see `revisions.py` for what a revision may be."""
        return revisions.resolve(rev, refs=self.refs, checkpoints=self.checkpoints, parents=self.parents)

    def parents(self, checkpoint: str) -> tuple[str, ...]:
        return self.manifest(checkpoint).made.parents

    def manifest(self, checkpoint: str) -> Manifest:
        """Of a full id; it is there even when the weights have been removed."""
        if not (self.checkpoints / checkpoint).is_dir():
            raise Corrupt(f"checkpoint {checkpoint[:12]} is missing", hint=_FSCK)
        return manifest.read(self.checkpoints / checkpoint)

    def checkpoint(self, rev: str = "HEAD") -> Checkpoint:
        """A checkpoint to be read: Corrupt where a file is missing, has another size, or changed since it was last good."""
        identifier = self.resolve(rev)
        found = Checkpoint(identifier, self.checkpoints / identifier, self.manifest(identifier))
        if identifier in self.dropped:
            raise NotFound(
                f"the weights of {identifier[:12]} were removed",
                hint=f"`llmos show {identifier[:12]}` tells how it was made",
            )
        self._verify(found)
        return found

    def _verify(self, checkpoint: Checkpoint) -> None:
        known = self.index.file_times(checkpoint.id)
        times = {name: self._verified_time(checkpoint, name, known.get(name)) for name in checkpoint.manifest.tree}
        if times != known:
            self.index.note_file_times(checkpoint.id, times)

    def _verified_time(self, checkpoint: Checkpoint, name: str, known: int | None) -> int:
        path, entry = checkpoint.path / name, checkpoint.manifest.tree[name]
        try:
            status = path.stat()
        except FileNotFoundError:
            raise Corrupt(f"checkpoint {checkpoint.id[:12]} has lost its file {name}", hint=_FSCK) from None
        if status.st_size != entry.size:
            raise Corrupt(
                f"{name} of checkpoint {checkpoint.id[:12]} has {status.st_size:,} bytes instead of {entry.size:,}",
                hint=_FSCK,
            )
        # Copying a workspace changes the times too, so a changed time alone proves nothing: the hash decides.
        if known is not None and known != status.st_mtime_ns and hash_file(path) != entry:
            raise Corrupt(f"{name} of checkpoint {checkpoint.id[:12]} is not what it was when it was saved", hint=_FSCK)
        return status.st_mtime_ns

    def metrics(self, checkpoint: str) -> dict[tuple[str, str], Metric]:
        """The latest numbers that any run measured on a checkpoint (a full id), by (name, split)."""
        return self.index.metrics(checkpoint)

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder on the workspace's own disk, gone afterwards unless it was committed."""
        self._sweep()
        process = this_process()
        folder = self.dot / "tmp" / f"stage_{process.pid}_{process.started}_{os.urandom(4).hex()}_{process.host}"
        with atomic.refusals(folder):
            atomic.make_directory(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left behind."""
        for folder in self.leftovers():
            shutil.rmtree(folder, ignore_errors=True)

    def leftovers(self) -> list[Path]:
        """Staged folders whose process is dead."""
        found = []
        for path in (self.dot / "tmp").glob("stage_*"):
            _, pid, started, _, where = path.name.split("_", 4)
            if where == host() and not Process(int(pid), float(started), where).alive():
                found.append(path)
        return found

    def begin(
        self,
        operation: str,
        *,
        config: Mapping[str, Any],
        files: Sequence[Path] = (),
        argv: Sequence[str] | None = None,
        parents: Sequence[str] = (),
        name: str = "",
    ) -> Run:
        """Begin a run (a context manager). `files` are kept verbatim, `parents` are the checkpoints (full ids) it uses,
        which nothing may remove while it lives; `name` is what users call it."""
        return runs.begin(self, operation, config=config, files=files, argv=argv, parents=parents, name=name)

    def store(self, staged: Path, made: Made) -> tuple[Checkpoint, int]:
        """Make a staged directory a checkpoint that no ref names yet, and say how many bytes were new on this disk.

        `Run.commit` is the way to call it. The same content and making give the same checkpoint again.
        """
        hashed = hash_files(staged / name for name in files_below(staged))
        if staged / manifest.NAME in hashed:
            raise LlmosError(
                f"a checkpoint's own {manifest.NAME} is written by llmos", hint="give that file another name"
            )
        tree: dict[str, FileEntry] = {path.relative_to(staged).as_posix(): entry for path, entry in hashed.items()}
        made_manifest = manifest.manifest(tree, made)
        final = Checkpoint(made_manifest.id, self.checkpoints / made_manifest.id, made_manifest)
        stored = self.objects.adopt(staged, tree)
        made_manifest.write(staged)
        if not atomic.publish(staged, final.path):
            stored = self._again(staged, final, stored)
        self._note_good(final)
        return final, stored

    def _again(self, staged: Path, final: Checkpoint, stored: int) -> int:
        """The checkpoint exists. Where its weights were removed, it gets them back."""
        if final.id not in self.dropped:
            return 0
        aside = staged.with_name(staged.name + "_old")
        final.path.rename(aside)
        atomic.publish(staged, final.path)
        shutil.rmtree(aside)
        self.dropped.restore(final.id)
        return stored

    def _note_good(self, checkpoint: Checkpoint) -> None:
        times = {name: (checkpoint.path / name).stat().st_mtime_ns for name in checkpoint.manifest.tree}
        self.index.note_file_times(checkpoint.id, times)


def _check_format(path: Path) -> None:
    """Without a YAML parser: `status` has no time for one, and a newer format may not even be read by ours."""
    try:
        match = _FORMAT_LINE.search(path.read_bytes())
    except FileNotFoundError:
        return
    if match and int(match[1]) > FORMAT:
        raise LlmosError(
            f"{path} says format {int(match[1])}, and this llmos knows formats up to {FORMAT}",
            hint="install a newer llmos: `pip install -U llmos-cli`",
        )
