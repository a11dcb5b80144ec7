"""status: where the workspace stands: HEAD, its numbers, what runs, which configs changed, how files are shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmos_cli.core.listing import read_bytes
from llmos_cli.core.records import RunRecord
from llmos_cli.core.refs import Head
from llmos_cli.core.settings import HINT, NAME, UNHEARD, is_missing
from llmos_cli.core.view import Group, Line, Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.summary import Summary, age, has_others, shown_id, summarize, told
from llmos_cli.operations.training.divergence import WAY_ON, Divergence, noted

_STORAGE = {
    "reflink": "equal files share their blocks (reflinks)",
    "hardlink": "equal files are hard links of one another",
    "copy": "this file system can share nothing: each checkpoint has its own copy of every file",
}


@dataclass(frozen=True)
class Process:
    """A living run; `since` in seconds since the epoch."""

    run: str
    operation: str
    name: str
    pid: int
    since: float
    progress: str


RESUMED = ("train", "prune", "quantize", "compress")
"""Commands with `--resume` whose runs keep what they have done so far."""
CONFIGURED = ("train", "prune", "quantize", "compress", "tune", "eval", "deploy")
"""Verbs with a file in `configs/`: here, since importing what says so takes longer than the rest of `status`."""


@dataclass(frozen=True)
class MissingConfig:
    """`copy`: what its last run kept of it; both below the workspace."""

    config: str
    copy: str


@dataclass(frozen=True)
class StatusResult:
    """`changed`: configs that differ from what the last run of their verb was given; `missing`: those that are gone since; `storage`: reflink, hardlink, copy or
    None before the first checkpoint; `resumable`: the last run of those that make a checkpoint step by step, where it was cut off and can
    go on; `diverged`: where its loss stopped it, so that it goes on with other settings alone; `lacks_settings`: llmos.yaml is gone."""

    workspace: str
    head: Head
    checkpoint: Summary | None
    running: tuple[Process, ...]
    changed: tuple[str, ...]
    storage: str | None
    resumable: str | None
    diverged: Divergence | None
    lacks_settings: bool = False
    goes_on: str = ""
    """The command that resumes it."""
    others: bool = False
    """Only other branches have checkpoints."""
    missing: tuple[MissingConfig, ...] = ()

    def view(self) -> View:
        storage = [f"storage: {_STORAGE[self.storage]}"] if self.storage else []
        return Group([Lines(self._head()), Lines(self._rest()), Lines(storage)])

    def _head(self) -> list[Line]:
        where = ["on branch ", Span(self.head.branch, "name")] if self.head.branch else ["HEAD is detached"]
        if self.others:
            return [[*where, ": no checkpoint, `llmos log --all` lists those of others"]]
        if self.checkpoint is None:
            return [[*where, ": no checkpoint yet, `llmos train` makes the first"]]
        facts = f" ({self.checkpoint.made_by}, {age(self.checkpoint.time)}, {self.checkpoint.told_size})"
        lines: list[Line] = [[*where, " at ", shown_id(self.checkpoint.id), facts]]
        tags = [name for name in self.checkpoint.names if name != self.head.branch]
        if tags:
            lines.append(f"  also called {', '.join(tags)}")
        if self.checkpoint.metrics:
            lines.append(f"  {told(self.checkpoint.metrics)}")
        return lines

    def _rest(self) -> list[Line]:
        lines: list[Line] = [f"{NAME} is missing, {UNHEARD}: {HINT}"] if self.lacks_settings else []
        for process in self.running:
            name = process.name or process.run
            lines.append(
                f"running: {process.operation} {name}, {age(process.since)}{process.progress and ', ' + process.progress}"
            )
        if self.resumable and self.diverged:
            lines.append(f"diverged: {self.resumable} at step {self.diverged.step}, {WAY_ON} goes on")
        elif self.resumable:
            lines.append(f"interrupted: {self.resumable}, `llmos {self.goes_on} --resume` goes on")
        if self.changed:
            lines.append(f"changed since its last run: {', '.join(self.changed)}")
        lines += [f"missing: {each.config}, {each.copy} is what a run was given last" for each in self.missing]
        return lines


def status(ws: Workspace) -> StatusResult:
    with ws.index.still():
        return _status(ws)


def _status(ws: Workspace) -> StatusResult:
    head = ws.head()
    interrupted = _resumable(ws, head)
    resumable = interrupted.id if interrupted else None
    return StatusResult(
        ws.name,
        head,
        summarize(ws, head.checkpoint) if head.checkpoint else None,
        tuple(_process(record) for record in ws.runs.alive()),
        tuple(_changed_configs(ws)),
        ws.storage,
        resumable,
        noted(ws.root / "runs" / resumable / "state") if resumable else None,
        is_missing(ws.root),
        interrupted.operation if interrupted else "",
        has_others(ws, head),
        tuple(_missing_configs(ws)),
    )


def _process(record: RunRecord) -> Process:
    return Process(record.id, record.operation, record.name, record.pid, record.started, _progress(record))


def _progress(record: RunRecord) -> str:
    step, total = record.progress.get("step", 0), record.progress.get("total", 0)
    if not record.progress:
        return ""
    return (
        f"{record.progress.get('stage', '')} {step}/{total}" if total else f"{record.progress.get('stage', '')} {step}"
    )


def _changed_configs(ws: Workspace) -> list[str]:
    """A run keeps the files it was given, word for word."""
    changed = []
    for path in sorted(each for each in ws.configs.glob("*.yaml") if each.exists()):
        last = ws.index.last_run(path.stem)
        kept = last.path / "configs" / path.name if last else None
        if kept and kept.exists() and read_bytes(kept) != read_bytes(path, linked=True):
            changed.append(f"configs/{path.name}")
    return changed


def _missing_configs(ws: Workspace) -> Iterator[MissingConfig]:
    """A run that ended well without the file is the word of somebody who removed it; one that failed for it is not."""
    for name in (f"{verb}.yaml" for verb in CONFIGURED if not (ws.configs / f"{verb}.yaml").exists()):
        last = ws.index.last_run(name.removesuffix(".yaml"), done=True)
        kept = last.path / "configs" / name if last else None
        if kept and kept.exists():
            yield MissingConfig(f"configs/{name}", str(kept.relative_to(ws.root)))


def _resumable(ws: Workspace, head: Head) -> RunRecord | None:
    runs = [run for operation in RESUMED if (run := ws.index.last_run(operation)) is not None]
    last = max(runs, key=lambda run: run.started, default=None)
    if last is None or last.status in ("running", "done") or last.base != head.name:
        return None
    state = last.path / "state"
    return last if state.is_dir() and any(state.iterdir()) else None
