"""The workspace: one folder, found from any folder inside it, that holds the life of a model.

    my-model/
      llmos.yaml            settings; `format: 1`
      configs/              one YAML per verb, the user's to edit
      checkpoints/<id>/     plain model directories, read-only, each with its manifest.json
      runs/<id>/            what every operation did
      .llmos/               HEAD refs/ objects/ sealed/ snapshots/ operations.jsonl index.sqlite locks/ tmp/ cache/

No path in it is absolute: a workspace that was moved goes on working.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import access, atomic, lastly, revisions, settings, storage
from llmos_cli.core.refs import FIRST, HEAD, HEADS, STAGES, TAGS, Head, Refs
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.events import Emit, Metric, ignore, warn

# What `status` and `log` do without is imported where it is used: they must answer at git's speed.
if TYPE_CHECKING:
    from llmos_cli.core.dropped import Dropped
    from llmos_cli.core.index import Index
    from llmos_cli.core.ledger import Ledger
    from llmos_cli.core.lost import Lost
    from llmos_cli.core.manifest import Manifest
    from llmos_cli.core.objects import Objects
    from llmos_cli.core.operation import Change
    from llmos_cli.core.oplog import OperationLog
    from llmos_cli.core.records import Runs
    from llmos_cli.core.runs import Run
    from llmos_cli.core.sealed import Sealed
    from llmos_cli.core.snapshots import Snapshots

DOT = ".llmos"
_KINDS = {"heads": "branch", "tags": "tag", "stages": "stage"}


@dataclass(frozen=True)
class Checkpoint:
    """`path` is a directory that transformers loads; its files' sizes and times have been checked."""

    id: str
    path: Path
    manifest: Manifest

    def config_json(self) -> dict[str, Any]:
        """Its model's configuration, as transformers wrote it."""
        values: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return values


class Workspace:
    """`emit` hears of waiting for locks; commands set it to the terminal's. `keep_branch`: runs leave the branch where it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dot = root / DOT
        self.configs = root / "configs"
        self.name = root.name
        self.checkpoints = root / "checkpoints"
        self.refs = Refs(self.dot)
        self.emit: Emit = ignore
        self.keep_branch = False
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[type[Workspace], tuple[Path]]:
        return Workspace, (self.root,)  # to a worker process: open files and connections stay here

    @classmethod
    def find(cls, start: Path | None = None, *, emit: Emit = ignore) -> Workspace:
        """The nearest workspace at or above `start` (the current folder), which `emit` hears of from then on."""
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / DOT / "refs").is_dir() or (folder / DOT / HEAD).is_file():
                settings.check_format(folder)
                found = cls(folder)
                found.emit = emit
                if found.unsettled and found.writable:
                    found.oplog.settle(emit)
                return found
        raise NotFound(f"there is no workspace in {here} or above it", hint="`llmos init` makes one here")

    @property
    def unsettled(self) -> bool:
        """Whether a process that was killed may have left something half done, or decrypted."""
        return (self.dot / "pending.json").exists() or self.sealed.waits()

    @classmethod
    def create(cls, directory: Path) -> Workspace:
        """Make the skeleton. HEAD comes last: what was cut off before can be created again."""
        root = cls.vacant(directory)
        for folder in ("configs", "checkpoints", "runs", f"{DOT}/refs/heads", f"{DOT}/tmp", f"{DOT}/cache"):
            with atomic.refusals(root):
                atomic.make_directory(root / folder)
        if not (root / settings.NAME).exists():
            atomic.write_text(root / settings.NAME, settings.FIRST, scratch=root / DOT / "tmp")
        atomic.write_text(root / DOT / HEAD, f"{FIRST}\n", scratch=root / DOT / "tmp")
        return cls(root)

    @staticmethod
    def vacant(directory: Path) -> Path:
        """The folder, in full; UsageError where it is a workspace already."""
        root = directory.resolve()
        if (root / DOT / HEAD).exists():
            raise UsageError(f"{root} is a workspace already", hint="`llmos status` shows it")
        return root

    @cached_property
    def writable(self) -> bool:
        """False in read-only mode, on a read-only file system, and for those whom the folder's mode keeps out."""
        return access.writable(self.dot)

    @cached_property
    def cache(self) -> Path:
        """Where what is derived from data is kept: in the workspace where that can be written."""
        return (self.dot if self.writable else access.own_folder(self.root)) / "cache"

    @cached_property
    def index(self) -> Index:
        from llmos_cli.core.index import Index

        return Index(self.root, self.dot)

    @cached_property
    def ledger(self) -> Ledger:
        from llmos_cli.core.ledger import Ledger

        return Ledger(self.dot)

    @cached_property
    def objects(self) -> Objects:
        from llmos_cli.core.objects import Objects

        return Objects(self.dot)

    @cached_property
    def oplog(self) -> OperationLog:
        from llmos_cli.core.oplog import OperationLog

        return OperationLog(self.root, self.dot, self.refs)

    @cached_property
    def dropped(self) -> Dropped:
        from llmos_cli.core.dropped import Dropped

        return Dropped(self.dot)

    @cached_property
    def lost(self) -> Lost:
        from llmos_cli.core.lost import Lost

        return Lost(self.dot)

    @cached_property
    def snapshots(self) -> Snapshots:
        from llmos_cli.core.snapshots import Snapshots

        return Snapshots(self.dot)

    @cached_property
    def sealed(self) -> Sealed:
        from llmos_cli.core.sealed import Sealed

        return Sealed(self.root, self.dot)

    @cached_property
    def runs(self) -> Runs:
        from llmos_cli.core.records import Runs

        return Runs(self)

    @property
    def storage(self) -> str | None:
        """How equal files are shared: `reflink`, `hardlink`, `copy`; None before the first checkpoint."""
        return storage.read(self.dot)

    def head(self) -> Head:
        """Corrupt where its branch has no checkpoint, and the log of operations left it one."""
        head = self.refs.head()
        if head.branch and head.checkpoint is None:
            self._must_not_be_lost([f"{HEADS}{head.branch}"])
        self._tell_by_hand([HEAD, *([f"{HEADS}{head.branch}"] if head.branch else [])])
        return head

    def onto(self) -> Head:
        """HEAD, for a command that is going to move it and first looks at what is there: what others commit in the meantime would
        otherwise be taken for seen, and fall out of the line. Nothing that a dead process began is pending then."""
        self.oplog.settle(self.emit)
        return self.head()

    def _must_not_be_lost(self, names: Sequence[str]) -> None:
        """That there is no such ref is no answer where the log of operations left it at a checkpoint."""
        left = self.oplog.left() if (self.dot / "operations.jsonl").exists() else {}  # else not even imported
        for ref in names:
            if (value := left.get(ref, (None,))[0]) and self.refs.read(ref) is None:
                kind, name = ref.removeprefix("refs/").split("/", 1)
                raise Corrupt(
                    f"{_KINDS[kind]} {name} is gone, and the last operation on it left it at {value[:12]}",
                    hint="`llmos fsck --repair` puts it back",
                )

    def resolve(self, rev: str = "HEAD") -> str:
        """The full id of a revision; see `revisions.py` for what a revision may be."""
        return self._found(rev, revisions.resolve)

    def named(self, rev: str) -> str:
        """`resolve`, whether that checkpoint is here or not."""
        return self._found(rev, revisions.follow)

    def _found(self, rev: str, find: Callable[..., str]) -> str:
        name = re.split("[~^]", rev)[0].removeprefix("refs/").removeprefix("heads/").removeprefix("tags/")
        try:
            found = find(rev, refs=self.refs, checkpoints=self.checkpoints, parents=self.parents)
        except NotFound:
            if name in ("", HEAD, "@"):
                self.head()
            else:
                self._must_not_be_lost(_called(name))
            raise
        if name in ("", HEAD, "@"):
            self.head()
        else:
            self._tell_by_hand([ref for ref in _called(name) if self.refs.read(ref)])
        return found

    def tell_moved(self, *prefixes: str) -> None:
        """Refs of these kinds that somebody moved, made or took away by hand, for whoever lists them."""
        self._tell_by_hand(lastly.astray(self.dot, self.refs, prefixes))

    def _tell_by_hand(self, refs: Sequence[str]) -> None:
        """It is believed, for it is what there is."""
        warn(self.emit, list(self._by_hand(refs)))

    def _by_hand(self, refs: Sequence[str]) -> Iterator[str]:
        """Where those stand that no command moved there, once for each."""
        for ref in (each for each in refs if each not in self._told):
            self._told.add(ref)
            if lastly.moved_by_hand(self.dot, self.refs, ref) and (change := self.oplog.by_hand(ref)):
                yield f"{_stands(change)}; `llmos fsck` tells more"

    def parents(self, checkpoint: str) -> tuple[str, ...]:
        """Of one that was given up as far as they are known."""
        if not (self.checkpoints / checkpoint).is_dir() and (loss := self.lost.find(checkpoint)) is not None:
            return loss.parents if loss.known else ()
        return self.manifest(checkpoint).made.parents

    def manifest(self, checkpoint: str) -> Manifest:
        """Of a full id; it is there even when the weights have been removed."""
        from llmos_cli.core import manifest

        if not (self.checkpoints / checkpoint).is_dir():
            from llmos_cli.core.lost import missing

            raise missing(self.root, checkpoint)
        try:
            return manifest.read(self.checkpoints / checkpoint)
        except Corrupt:
            if checkpoint not in self.lost:
                raise
            from llmos_cli.core.lost import missing

            raise missing(self.root, checkpoint) from None

    def checkpoint(self, rev: str = "HEAD") -> Checkpoint:
        """A checkpoint to be read: Corrupt where a file is missing, has another size, or changed since it was last good."""
        from llmos_cli.core import storing

        identifier = self.resolve(rev)
        found = Checkpoint(identifier, self.checkpoints / identifier, self.manifest(identifier))
        storing.verify(self, found)
        return found

    def closed(self, checkpoint: str) -> str:
        """Why the weights of a checkpoint cannot be read: `removed`, `sealed`, `lost`, or empty where they can."""
        if checkpoint in self.dropped:
            return "removed"
        if checkpoint in self.sealed:
            return "sealed"
        return "lost" if checkpoint in self.lost and checkpoint in self.index.lost() else ""

    def metrics(self, checkpoint: str) -> dict[tuple[str, str], Metric]:
        """The latest numbers that any run measured on a checkpoint (a full id), by (name, split)."""
        return self.index.metrics(checkpoint)

    def own_metrics(self, checkpoint: str) -> dict[tuple[str, str], Metric]:
        """Those that the run which made it measured, on the data that its manifest tells."""
        return self.index.own_metrics(checkpoint)

    def stage(self) -> AbstractContextManager[Path]:
        """An empty folder on the workspace's own disk (where that can be written), gone afterwards unless it was committed."""
        from llmos_cli.core import staging

        return staging.stage((self.dot if self.writable else access.own_folder(self.root)) / "tmp")

    def begin(
        self,
        operation: str,
        *,
        config: Mapping[str, Any],
        files: Sequence[Path] = (),
        argv: Sequence[str] | None = None,
        parents: Sequence[str] = (),
        onto: Head | None = None,
        name: str = "",
    ) -> Run:
        """Begin a run (a context manager). `files` are kept verbatim, `parents` are the checkpoints (full ids) it uses,
        which nothing may remove while it lives; `onto`: where HEAD was before those were looked for, where it is now if that does not
        matter; `name` is what users call it."""
        from llmos_cli.core import runs

        access.require_writable(self.dot)
        return runs.begin(self, operation, config=config, files=files, argv=argv, parents=parents, onto=onto, name=name)


def _called(name: str) -> list[str]:
    """Refs that operations move, and that a revision may mean by a name."""
    return [HEADS + name, TAGS + name, *([f"refs/{name}"] if f"refs/{name}".startswith(STAGES) else [])]


def _stands(change: Change) -> str:
    """Where a ref is that no command moved there."""
    from llmos_cli.core.operation import told  # here: refs are where the log left them, as a rule

    before, after = told(change.before, change.after), told(change.after, change.before)
    stands = f"is at {after}" if change.after else "is gone"
    return f"{change.name} {stands}, by no command: {f'the last operation left it at {before}' if change.before else 'none made it'}"
