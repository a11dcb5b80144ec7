"""A recorded operation run again: in a scratch workspace beside the user's data, by the recorded config alone, as a process of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic, trust
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.storing import sealed
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, Interrupted, interrupted
from llmos_cli.events import Emit, Note
from llmos_cli.operations import lineage, snapshots
from llmos_cli.operations.config import root_of
from llmos_cli.operations.pipeline.process import Processes, stopping

if TYPE_CHECKING:
    from llmos_cli.operations.pipeline.process import Ended

REDONE = ("train", "prune", "quantize", "compress")
OUR_OWN = (".llmos", "checkpoints", "runs", "configs", "llmos.yaml")


@dataclass(frozen=True)
class Module:
    """A model's own code: `file`, as its config names it, whose content `checkpoint` was made with."""

    file: str
    sha256: str
    checkpoint: str


@dataclass(frozen=True)
class Job:
    """`config`: sections and `seed`, plain; `parent` is a checkpoint of the scratch workspace, "" for none; `threads`: this machine's
    when None; `module`: the code that its config names."""

    operation: str
    config: Mapping[str, Any]
    parent: str = ""
    threads: int | None = None
    module: Module | None = None


def job(ws: Workspace, made: Manifest) -> Job:
    """What made a checkpoint."""
    parent = next(iter(made.made.parents), "")
    return Job(made.made.operation, readable(ws, made), parent, threads(made), module(made))


def module(made: Manifest) -> Module | None:
    """The code that its config names, which its tree has a copy of."""
    file = ((made.made.config.get("model") or {}).get("module") or "").rpartition(":")[0]
    entry = made.tree.get(Path(file).name) if file else None
    return Module(file, entry.sha256, made.id) if entry else None


def code(ws: Workspace, module: Module, ask: Callable[[str], bool] | None = None) -> bytes:
    """What a model's own code was then, whatever became of the file since. Untrusted (exit 5) where it is not trusted in this
    workspace; `ask` may list it with the user's consent. Corrupt where nothing here has it any more."""
    for path in _copies(ws, module):
        if path.is_file() and trust.digest(path) == module.sha256:
            return trust.require(ws, path, ask=ask)
    raise Corrupt(
        f"nothing here has {module.file} as {short(module.checkpoint)} was made with it",
        hint=f"bring the file back as it was: its SHA-256 is {module.sha256}",
    )


def _copies(ws: Workspace, module: Module) -> Iterator[Path]:
    """Where it may be, the nearest first: another checkpoint may have been made with the same."""
    name = Path(module.file).name
    yield ws.root / module.file
    yield ws.checkpoints / module.checkpoint / name
    for entry in ws.index.entries():
        found = ws.manifest(entry.id).tree.get(name)
        if found and found.sha256 == module.sha256:
            yield ws.checkpoints / entry.id / name


def readable(ws: Workspace, made: Manifest) -> dict[str, Any]:
    """Its config, reading the snapshots of its data and of calibration's own where there are any."""
    told, operation = config(made), made.made.operation
    if kept := snapshots.kept_of(ws, made):
        told["data"] = snapshots.reading(kept, told["data"])
    if kept := snapshots.calibration_kept_of(ws, made):
        told[operation] = {**told[operation], "calibration": snapshots.source_of(kept)}
    return told


def config(made: Manifest) -> dict[str, Any]:
    """As a config file says it; what a compression found out by itself is no option, and what `auto` chose by measuring is one."""
    operation, environment = made.made.operation, made.made.environment
    told = {key: value for key, value in made.made.config.items() if key in root_of(operation).model_fields}
    sections = {name: dict(told.get(name) or {}) for name in {operation, "heal"} if name in told}
    sections[operation].pop("chosen", None)
    learning = sections[operation] if operation == "train" else sections.get("heal", {})
    learning |= {"precision": environment["precision"]} if "precision" in environment else {}
    learning |= {"compile": "off"} if environment.get("compiled") is False else {}
    return {**told, **sections, "seed": made.made.seed}


def threads(made: Manifest) -> int | None:
    found = made.made.environment.get("threads")
    return found if isinstance(found, int) else None


@contextmanager
def scratch(ws: Workspace, root: Path) -> Iterator[Workspace]:
    """An empty workspace in which the files beside this one's own, and what was kept of data, are found under the same paths, and
    the same code may run."""
    made = Workspace.create(root)
    if ws.snapshots.ids():
        made.snapshots.directory.symlink_to(ws.snapshots.directory)
    for entry in ws.root.iterdir():
        if entry.name not in OUR_OWN:
            (root / entry.name).symlink_to(entry)
    with trust.lent(ws, made):
        yield made


def lend(ws: Workspace, to: Workspace, checkpoint: str) -> None:
    """A checkpoint as it is, for what cannot be made again or was only looked at; with its line."""
    if checkpoint in ws.sealed:
        raise sealed(checkpoint)
    for each in lineage.line(ws, checkpoint):
        place = to.checkpoints / each.id
        if not place.exists():
            place.symlink_to(ws.checkpoints / each.id)


def run(ws: Workspace, there: Workspace, job: Job, emit: Emit) -> Ended:
    """The command, as a process of its own: whatever this one has in memory is no part of what was recorded. Interrupted by Ctrl-C."""
    teacher = (job.config.get("train") or {}).get("teacher") if job.operation == "train" else None
    if teacher:
        lend(ws, there, ws.resolve(teacher))
    config = _rooted(ws, job.config)
    if job.module:
        name = _inside(job.module.file)
        _put(there, name, code(ws, job.module))
        config["model"] = {**config["model"], "module": f"{name}:{config['model']['module'].rpartition(':')[2]}"}
    file = there.root / "recorded.yaml"
    atomic.write_text(file, json.dumps(config, ensure_ascii=False))
    revision = [job.parent] if job.parent else []
    command = [job.operation, *revision, "-c", str(file), "--keep-branch", "--json"]
    processes = Processes()
    with stopping(processes):
        ended = processes.run(
            [sys.executable, "-m", "llmos_cli", *command],
            cwd=there.root,
            env=_alone(job.threads),
            log=there.dot / "rerun.txt",
            hear=lambda line: emit(Note(line)),
            began=lambda process: None,
        )
    if processes.stopped:
        raise Interrupted(interrupted().message, hint="begin again when you like: nothing was changed")
    return ended


def _inside(file: str) -> str:
    """Where the scratch workspace has a file of code: what lies outside of the user's has no other place in it."""
    outside = Path(file).is_absolute() or os.path.normpath(file).startswith("..")
    return Path(file).name if outside else os.path.normpath(file)


def _put(there: Workspace, name: str, content: bytes) -> None:
    """In place of the link to the user's file, which is not written to: nor is a folder of theirs that it lies in."""
    for folder in reversed(Path(name).parents[:-1]):
        place = there.root / folder
        if place.is_symlink():
            theirs = place.resolve()
            place.unlink()
            place.mkdir()
            for entry in theirs.iterdir():
                (place / entry.name).symlink_to(entry)
    atomic.write_bytes(there.root / name, content)


def _rooted(ws: Workspace, config: Mapping[str, Any]) -> dict[str, Any]:
    """With paths that lead out of the workspace made absolute: the scratch one lies elsewhere."""

    def rooted(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("../"):
            return str((ws.root / value).resolve())
        if isinstance(value, dict):
            return {key: rooted(item) for key, item in value.items()}
        return [rooted(item) for item in value] if isinstance(value, list) else value

    return {**config, "data": rooted(config.get("data") or {})}


def _alone(threads: int | None) -> dict[str, str]:
    """The environment without settings of the user's, and as many threads as then."""
    kept = {name: value for name, value in os.environ.items() if not (name.startswith("LLMOS_") and "__" in name)}
    kept.pop("LLMOS_SEED", None)
    return {**kept, **({"OMP_NUM_THREADS": str(threads)} if threads is not None else {})}
