"""What is remembered of a pipeline, in files of the workspace.

.llmos/pipeline/results/<key>.json    what a stage made under a key; never wrong, only perhaps gone
.llmos/pipeline/stages/<name>.json    what a stage did last: why it would run again, what of its outputs is its own
.llmos/pipeline/objects/<sha256>      the contents of shell stages' outputs
.llmos/pipeline/logs/<name>.txt       what a stage's process said last (`pipeline/log.py`)
.llmos/refs/stages/<name>             its checkpoint, which `gc` therefore keeps
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_text
from llmos_cli.core.objects import hash_file
from llmos_cli.core.processes import Process, scratch_name
from llmos_cli.core.redaction import hidden
from llmos_cli.core.sealed import OUTPUTS
from llmos_cli.errors import UNREADABLE
from llmos_cli.operations.pipeline import FOLDER, answer
from llmos_cli.operations.pipeline.files import Tree

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """What a stage made: a checkpoint ("" for none), files, what its command said as JSON; `runs` are those it began; `seconds` it took;
    `at`: when, in seconds since the epoch."""

    key: str
    stage: str
    facts: Mapping[str, Any]
    checkpoint: str = ""
    outputs: Tree = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    seconds: float = 0.0
    at: float = 0.0


@dataclass(frozen=True)
class Last:
    """What a stage did last: `status` is running, done, failed or interrupted; while it runs, in `process`."""

    key: str
    facts: Mapping[str, Any]
    status: Literal["running", "done", "failed", "interrupted"]
    outputs: Tree = field(default_factory=dict)
    process: tuple[int, float, str] | None = None

    @property
    def alive(self) -> bool:
        return self.status == "running" and self.process is not None and Process(*self.process).alive()


LOCK = "pipeline"
"""Held by whoever runs stages, or removes what is remembered of them."""


class Memory:
    def __init__(self, ws: Workspace) -> None:
        self.folder = ws.dot / FOLDER
        self._dot = ws.dot
        self._scratch = ws.dot / "tmp"

    def result(self, key: str) -> Result | None:
        found = _read(self.folder / "results" / f"{key}.json")
        return result_of(found) if found and answer.is_one(found["said"]) else None

    def keep(self, result: Result) -> None:
        self._write(self.folder / "results" / f"{result.key}.json", asdict(result))

    def used(self, key: str) -> None:
        """`gc` goes by when a result was last of use."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / "results" / f"{key}.json")

    def last(self, stage: str) -> Last | None:
        found = _read(self.folder / "stages" / f"{stage}.json")
        if not found:
            return None
        process = found.pop("process")
        return Last(**found, process=tuple(process) if process else None)

    def note(self, stage: str, last: Last) -> None:
        self._write(self.folder / "stages" / f"{stage}.json", asdict(last))

    def log(self, stage: str) -> Path:
        return self.folder / "logs" / f"{stage}.txt"

    def _write(self, path: Path, value: Mapping[str, Any]) -> None:
        atomic.write_text(path, json.dumps(hidden(value), indent=1, default=str) + "\n", scratch=self._scratch)

    def keep_contents(self, root: Path, outputs: Tree) -> None:
        """Of files that a command made: nothing else could make them again at once."""
        for name, sha256 in outputs.items():
            place(root / name, self.contents(sha256), scratch=self._scratch)

    def contents(self, sha256: str) -> Path:
        return self._dot / OUTPUTS / sha256.removesuffix("+x")

    def bring_back(self, root: Path, outputs: Tree) -> bool:
        """Put the outputs of a result where they belong; False where their contents are not there (any more)."""
        if not all(_holds(self.contents(sha256), sha256) for sha256 in outputs.values()):
            return False
        for name, sha256 in outputs.items():
            place(self.contents(sha256), root / name, scratch=self._scratch)
            if sha256.endswith("+x"):
                (root / name).chmod(0o777 & ~atomic.umask())
        return True


def unused(dot: Path, since: float, stages: Collection[str] | None) -> Iterator[tuple[Path, str]]:
    """Results that are no stage's last and were of no use since then, and contents that no other result has; with the reason. `stages`:
    those that there are now, where that is known; what others did last before then is as little of use."""
    folder = dot / FOLDER
    done = {
        path: path.relative_to(folder / "stages").with_suffix("").as_posix()
        for path in sorted(folder.glob("stages/**/*.json"))
    }
    gone = {
        path
        for path, name in done.items()
        if stages is not None and name not in stages and path.stat().st_mtime <= since
    }
    yield from ((path, "llmos.yaml has no such stage") for path in sorted(gone))
    last = {str((_read(path) or {}).get("key")) for path in done.keys() - gone}
    results = {
        path: path.stem in last or path.stat().st_mtime > since for path in sorted(folder.glob("results/*.json"))
    }
    held = {
        sha for path, kept in results.items() if kept for sha in ((_read(path) or {}).get("outputs") or {}).values()
    }
    yield from ((path, "no stage made it lately") for path, kept in results.items() if not kept)
    for path in sorted(dot.glob(f"{OUTPUTS}/*")):
        if not held & {path.name, f"{path.name}+x"} and path.stat().st_mtime <= since:
            yield path, "no remembered stage wrote it"


def old_logs(dot: Path, since: float) -> Iterator[Path]:
    for path in sorted((dot / FOLDER / "logs").rglob("*.txt*")):
        if path.is_file() and path.stat().st_mtime <= since:
            yield path


def result_of(value: dict[str, Any]) -> Result:
    return Result(**{**value, "runs": tuple(value["runs"])})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(read_text(path))
    except (FileNotFoundError, NotADirectoryError, *UNREADABLE):
        return None  # half a file is none: what it told of is done again
    return value if isinstance(value, dict) else None


def _holds(path: Path, sha256: str) -> bool:
    return path.is_file() and hash_file(path).sha256 == sha256.removesuffix("+x")


def place(source: Path, target: Path, *, scratch: Path) -> None:
    """A copy of a file, whole or not at all; one that is there already with the same size stays."""
    if target.is_file() and target.stat().st_size == source.stat().st_size and _holds(target, hash_file(source).sha256):
        return
    with atomic.refusals(target):
        atomic.make_directory(target.parent)
        atomic.make_directory(scratch)
        unfinished = scratch / scratch_name("copy")
        try:
            shutil.copyfile(source, unfinished)
            atomic.sync_file(unfinished)
            _move(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)


def _move(unfinished: Path, target: Path) -> None:
    """Renamed; where the scratch folder is on another file system, copied beside its place first."""
    if unfinished.stat().st_dev != target.parent.stat().st_dev:
        beside = target.parent / scratch_name(".copy")
        shutil.copyfile(unfinished, beside)
        atomic.sync_file(beside)
        beside.replace(target)
    else:
        unfinished.replace(target)
    atomic.sync_directory(target.parent)
