"""A recorded operation run again: in a scratch workspace beside the user's data, by the recorded config alone, as a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic, trust, yaml12
from llmos_cli.core import config as configs
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.storing import sealed
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, Interrupted, interrupted
from llmos_cli.events import Emit, Note
from llmos_cli.operations import lineage, snapshots
from llmos_cli.operations.config import methods, root_of
from llmos_cli.operations.pipeline.process import Processes, stopping

if TYPE_CHECKING:
    from llmos_cli.operations.pipeline.process import Ended

REDONE = ("train", "prune", "quantize", "compress")
OUR_OWN = (".llmos", "checkpoints", "runs", "configs", "llmos.yaml")


@dataclass(frozen=True)
class Job:
    """`config`: sections and `seed`, plain; `parent` is a checkpoint of the scratch workspace, "" for none; `threads`: this machine's
    when None; `like` is the checkpoint whose code it runs, `tree` that one's files."""

    operation: str
    config: Mapping[str, Any]
    parent: str = ""
    threads: int | None = None
    like: str = ""
    tree: Mapping[str, FileEntry] = field(default_factory=dict)


def job(ws: Workspace, made: Manifest) -> Job:
    """What made a checkpoint."""
    parent = next(iter(made.made.parents), "")
    return Job(made.made.operation, readable(ws, made), parent, threads(made), made.id, made.tree)


def readable(ws: Workspace, made: Manifest) -> dict[str, Any]:
    """Its config, reading the snapshot of its data where there is one."""
    told = config(made)
    if kept := snapshots.kept_of(ws, made):
        told["data"] = snapshots.reading(kept, told["data"])
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


def fingerprint(ws: Workspace, made: Manifest, emit: Emit) -> Mapping[str, Any]:
    """Of the data as the step would read it now."""
    from llmos_cli.operations.eval import prepare
    from llmos_cli.operations.training.start import start
    from llmos_cli.options.data import DataOptions

    parent = ws.checkpoint(made.made.parents[0]) if made.made.parents else None
    if made.made.operation == "train":
        recorded = yaml12.from_plain(config(made), f"the manifest of {short(made.id)}")
        checked: Any = configs.check(recorded, root_of("train"), methods=methods)
        teacher = ws.checkpoint(checked.train.teacher) if checked.train.teacher else None
        return start(ws, parent, checked, teacher).prepared.fingerprint
    assert parent is not None, "what compresses begins from something"
    data = DataOptions(**made.made.config["data"])
    return prepare(ws, parent, data, seed=made.made.seed, emit=emit).prepared.fingerprint


def sources(data: Mapping[str, Any]) -> list[str]:
    """The names of the sources in a fingerprint."""
    return [str(source.get("source") if isinstance(source, Mapping) else source) for source in data.get("sources", ())]


def scratch(ws: Workspace, root: Path) -> Workspace:
    """An empty workspace in which the files beside this one's own, and what was kept of data, are found under the same paths."""
    made = Workspace.create(root)
    if ws.snapshots.ids():
        made.snapshots.directory.symlink_to(ws.snapshots.directory)
    for entry in ws.root.iterdir():
        if entry.name not in OUR_OWN:
            (root / entry.name).symlink_to(entry)
    return made


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
    file = there.root / "recorded.yaml"
    atomic.write_text(file, json.dumps(_rooted(ws, job.config), ensure_ascii=False))
    revision = [job.parent] if job.parent else []
    command = [job.operation, *revision, "-c", str(file), "--keep-branch", "--json"]
    processes = Processes()
    with _trusting(ws, there, job), stopping(processes):
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


@contextmanager
def _trusting(ws: Workspace, there: Workspace, job: Job) -> Iterator[None]:
    """A model's own module, where it is trusted here, is so in the scratch workspace too, for as long as it takes."""
    reference = (job.config.get("model") or {}).get("module")
    if not reference:
        yield
        return
    file = ws.root / reference.partition(":")[0]
    content = trust.require(ws, file)
    recorded = job.tree.get(file.name)
    if recorded is not None and hashlib.sha256(content).hexdigest() != recorded.sha256:
        raise Corrupt(
            f"{file.name} is not what {short(job.like)} was made with",
            hint="its checkpoint has the file as it was then",
        )
    trust.trust(there, file)
    try:
        yield
    finally:
        trust.revoke(there, str(file.resolve()))


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
