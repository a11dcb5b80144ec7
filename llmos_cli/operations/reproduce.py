"""reproduce: make a checkpoint again from what its manifests recorded, step by step in a scratch workspace, and compare the files' hashes.

Each step is the command that its manifest describes, with the recorded config alone, on the step before as it was made again. The data
is read first: where it is not what it was, nothing is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic, trust, yaml12
from llmos_cli.core import config as configs
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.view import Group, Line, Lines, Span, Table, View, duration, number, short
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Corrupt, Interrupted, LlmosError, NotFound, UsageError, interrupted
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import lineage, snapshots
from llmos_cli.operations.changed import Changed, changed
from llmos_cli.operations.config import methods, root_of
from llmos_cli.operations.pipeline.process import Processes, stopping

if TYPE_CHECKING:
    from llmos_cli.operations.pipeline.process import Ended

REDONE = ("train", "prune", "quantize", "compress")
OUR_OWN = (".llmos", "checkpoints", "runs", "configs", "llmos.yaml")


@dataclass(frozen=True)
class Step:
    """`result`: identical, diverged, or taken (as it is: nothing here can make it again). Of one that diverged: `files` that differ, `change`
    of the weight that differs most (norm of the difference over its norm) and its name, metrics as (then, now). `environment`:
    what is not as it was then; `expected`: the determinism that its manifest recorded."""

    checkpoint: str
    operation: str
    result: str
    seconds: float = 0.0
    files: Sequence[str] = ()
    weight: str = ""
    change: float | None = None
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    environment: Sequence[Changed] = ()
    expected: str = ""


@dataclass(frozen=True)
class ReproduceResult:
    """`steps` from the root on, up to the first that diverged."""

    checkpoint: str
    steps: Sequence[Step]

    @property
    def identical(self) -> bool:
        return all(step.result != "diverged" for step in self.steps)

    def enforce(self) -> None:
        if not self.identical:
            last = self.steps[-1]
            raise LlmosError(
                f"{short(self.checkpoint)} could not be made again: {last.operation} {short(last.checkpoint)} came out otherwise",
                hint=f"expected was: {last.expected or 'nothing was recorded'}",
            )

    def view(self) -> View:
        rows = [
            [
                Span(short(step.checkpoint), "id"),
                step.operation,
                _word(step),
                duration(step.seconds) if step.seconds else "",
            ]
            for step in self.steps
        ]
        return Group([Table(["checkpoint", "made by", "again", "took"], rows, align="lllr"), Lines(list(self._told()))])

    def _told(self) -> Iterator[Line]:
        last = self.steps[-1]
        if self.identical:
            yield f"every byte of {short(self.checkpoint)} came out again"
            return
        yield f"{', '.join(last.files)} differ"
        if last.change is not None:
            yield f"the weight that differs most is {last.weight}, by {number(last.change)} of its norm"
        for name, (before, after) in last.metrics.items():
            yield f"{name} was {number(before)} and is {number(after)}"
        for change in last.environment:
            yield f"{change.key} was {change.before} and is {change.after}"


def _word(step: Step) -> str | Span:
    return (
        Span(step.result, "good" if step.result == "identical" else "bad")
        if step.result != "taken"
        else "taken as it is"
    )


def reproduce(ws: Workspace, rev: str = "HEAD", *, emit: Emit = ignore) -> ReproduceResult:
    """Corrupt (exit 5) where the data is not what it was; a step that diverges ends it, and is told in the result."""
    line = [*lineage.line(ws, ws.resolve(rev))][::-1]
    if not any(made.made.operation in REDONE for made in line):
        raise UsageError(
            "nothing of this line can be made again", hint="it was imported: `llmos import` brings it anew"
        )
    check_data(ws, line, emit)
    steps: list[Step] = []
    with ws.stage() as staged:
        scratch = _scratch(ws, staged / "workspace")
        for made in line:
            if made.made.operation in REDONE:
                emit(Note(f"{made.made.operation} {short(made.id)} again"))
                steps.append(_redone(ws, scratch, made, emit))
            else:
                _lend(ws, scratch, made.id)
                steps.append(Step(made.id, made.made.operation, "taken"))
            if steps[-1].result == "diverged":
                break
    return ReproduceResult(line[-1].id, tuple(steps))


def check_data(ws: Workspace, line: Sequence[Manifest], emit: Emit = ignore) -> None:
    """Corrupt, naming source and split, where a step's data is not what it was made with."""
    for made in line:
        # What read a checkpoint whose weights were removed is compared when that has been made again; what was kept is read
        # from its snapshot.
        removed = set(made.made.parents) & ws.dropped.all()
        if made.made.operation in REDONE and not removed and not snapshots.kept_of(ws, made):
            _check_data(ws, made, emit)


def _check_data(ws: Workspace, made: Manifest, emit: Emit) -> None:
    sources = ", ".join(_sources(made.made.data)) or "the data"
    try:
        now = _fingerprint(ws, made, emit)
    except NotFound as error:
        raise Corrupt(
            f"{sources}, which {short(made.id)} was made with, is gone: {error.message}", hint=error.hint
        ) from error
    _compare_data(made, now)


def _compare_data(made: Manifest, now: Mapping[str, Any]) -> None:
    sources = ", ".join(_sources(made.made.data)) or "the data"
    for split, before in made.made.data.get("splits", {}).items():
        after = now.get("splits", {}).get(split)
        if after != before:
            told = (
                f"has {after['rows']:,} rows now" if after and after["rows"] != before["rows"] else "has other rows now"
            )
            raise Corrupt(
                f"the {split} split of {sources} is not what {short(made.id)} was made with: it had {before['rows']:,} rows and {told}",
                hint="bring the data back as it was; its hashes are in `llmos show`, and `llmos data snapshot` would have kept it",
            )


def _sources(data: Mapping[str, Any]) -> list[str]:
    return [str(source.get("source") if isinstance(source, Mapping) else source) for source in data.get("sources", ())]


def _fingerprint(ws: Workspace, made: Manifest, emit: Emit) -> Mapping[str, Any]:
    """Of the data as the step would read it now."""
    from llmos_cli.operations.eval import prepare
    from llmos_cli.operations.training.start import start
    from llmos_cli.options.data import DataOptions

    parent = ws.checkpoint(made.made.parents[0]) if made.made.parents else None
    if made.made.operation == "train":
        config: Any = configs.check(_config(made), root_of("train"), methods=methods)
        teacher = ws.checkpoint(config.train.teacher) if config.train.teacher else None
        return start(ws, parent, config, teacher).prepared.fingerprint
    assert parent is not None, "what compresses begins from something"
    data = DataOptions(**made.made.config["data"])
    return prepare(ws, parent, data, seed=made.made.seed, emit=emit).prepared.fingerprint


def _config(made: Manifest) -> yaml12.Node:
    """As a config file says it; what a compression found out by itself is no option, and what `auto` chose by measuring is one."""
    operation, environment = made.made.operation, made.made.environment
    told = {key: value for key, value in made.made.config.items() if key in root_of(operation).model_fields}
    sections = {name: dict(told.get(name) or {}) for name in {operation, "heal"} if name in told}
    sections[operation].pop("chosen", None)
    learning = sections[operation] if operation == "train" else sections.get("heal", {})
    learning |= {"precision": environment["precision"]} if "precision" in environment else {}
    learning |= {"compile": "off"} if environment.get("compiled") is False else {}
    return yaml12.from_plain({**told, **sections, "seed": made.made.seed}, f"the manifest of {short(made.id)}")


def _scratch(ws: Workspace, root: Path) -> Workspace:
    """An empty workspace in which the files beside this one's own, and what was kept of data, are found under the same paths."""
    scratch = Workspace.create(root)
    if ws.snapshots.ids():
        scratch.snapshots.directory.symlink_to(ws.snapshots.directory)
    for entry in ws.root.iterdir():
        if entry.name not in OUR_OWN:
            (root / entry.name).symlink_to(entry)
    return scratch


def _lend(ws: Workspace, scratch: Workspace, checkpoint: str) -> None:
    """A checkpoint as it is, for what cannot be made again or was only looked at; with its line."""
    for each in lineage.line(ws, checkpoint):
        place = scratch.checkpoints / each.id
        if not place.exists():
            place.symlink_to(ws.checkpoints / each.id)


def _redone(ws: Workspace, scratch: Workspace, made: Manifest, emit: Emit) -> Step:
    teacher = (made.made.config.get("train") or {}).get("teacher")
    if made.made.operation == "train" and teacher:
        _lend(ws, scratch, ws.resolve(teacher))
    started = time.time()
    said = _run(ws, scratch, made, emit)
    again = scratch.checkpoint(str(said["checkpoint"]))
    _compare_data(made, again.manifest.made.data)
    seconds = time.time() - started
    expected = made.made.environment.get("determinism") or {}
    step = Step(
        made.id,
        made.made.operation,
        "identical" if again.manifest.tree == made.tree else "diverged",
        seconds,
        environment=_environment(made, again.manifest),
        expected=": ".join(filter(None, [expected.get("level"), expected.get("why")])),
    )
    if step.result == "diverged":
        return _measured(ws, scratch, made, again, step)
    _take_its_place(scratch, made, again)
    return step


def _run(ws: Workspace, scratch: Workspace, made: Manifest, emit: Emit) -> Mapping[str, Any]:
    """The command, as a process of its own: whatever this one has in memory is no part of what was recorded."""
    operation = made.made.operation
    file = scratch.root / "recorded.yaml"
    atomic.write_text(file, json.dumps(_readable(ws, made, emit), ensure_ascii=False))
    words = [
        sys.executable,
        "-m",
        "llmos_cli",
        operation,
        *made.made.parents[:1],
        "-c",
        str(file),
        "--keep-branch",
        "--json",
    ]
    processes = Processes()
    with _trusting(ws, scratch, made), stopping(processes):
        ended = processes.run(
            words,
            cwd=scratch.root,
            env=_alone(made),
            log=scratch.dot / "reproduce.txt",
            hear=lambda line: emit(Note(line)),
            began=lambda process: None,
        )
    if processes.stopped:
        raise Interrupted(interrupted().message, hint="begin again when you like: nothing was changed")
    if ended.code:
        raise _failure(made, ended)
    return ended.said


@contextmanager
def _trusting(ws: Workspace, scratch: Workspace, made: Manifest) -> Iterator[None]:
    """A model's own module, where it is trusted here, is so in the scratch workspace too, for as long as it takes."""
    reference = (made.made.config.get("model") or {}).get("module")
    if not reference:
        yield
        return
    file = ws.root / reference.partition(":")[0]
    content = trust.require(ws, file)
    recorded = made.tree.get(file.name)
    if recorded is not None and hashlib.sha256(content).hexdigest() != recorded.sha256:
        raise Corrupt(
            f"{file.name} is not what {short(made.id)} was made with", hint="its checkpoint has the file as it was then"
        )
    trust.trust(scratch, file)
    try:
        yield
    finally:
        trust.revoke(scratch, str(file.resolve()))


def _failure(made: Manifest, ended: Ended) -> LlmosError:
    error = ended.said.get("error") or {}
    return LlmosError(
        f"{made.made.operation} {short(made.id)} cannot be run again: {error.get('message') or ended.tail}",
        hint=str(error.get("hint") or "`llmos show` tells how it was made"),
    )


def _readable(ws: Workspace, made: Manifest, emit: Emit) -> dict[str, Any]:
    """Its config, with data that is found from the scratch workspace: the snapshot of it, if there is one."""
    config = _rooted(ws, _config(made).plain())
    if kept := snapshots.kept_of(ws, made):
        emit(Note(f"its data is read from snapshot {short(kept)}"))
        config["data"] = snapshots.reading(kept, config["data"])
    return config


def _rooted(ws: Workspace, config: dict[str, Any]) -> dict[str, Any]:
    """With paths that lead out of the workspace made absolute: the scratch one lies elsewhere."""

    def rooted(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("../"):
            return str((ws.root / value).resolve())
        if isinstance(value, dict):
            return {key: rooted(item) for key, item in value.items()}
        return [rooted(item) for item in value] if isinstance(value, list) else value

    return {**config, "data": rooted(config.get("data") or {})}


def _alone(made: Manifest) -> dict[str, str]:
    """The environment without settings of the user's, and as many threads as then."""
    kept = {name: value for name, value in os.environ.items() if not (name.startswith("LLMOS_") and "__" in name)}
    kept.pop("LLMOS_SEED", None)
    threads = made.made.environment.get("threads")
    return {**kept, **({"OMP_NUM_THREADS": str(threads)} if isinstance(threads, int) else {})}


def _environment(made: Manifest, again: Manifest) -> list[Changed]:
    ours = [{k: v for k, v in each.made.environment.items() if k != "determinism"} for each in (made, again)]
    return changed(ours[0], ours[1])


def _measured(ws: Workspace, scratch: Workspace, made: Manifest, again: Checkpoint, step: Step) -> Step:
    """By how much it came out otherwise."""
    files = [
        name for name in {**made.tree, **again.manifest.tree} if made.tree.get(name) != again.manifest.tree.get(name)
    ]
    then, now = ws.metrics(made.id), scratch.metrics(again.id)
    numbers = {
        " ".join(filter(None, [split, name])): (metric.value, now[name, split].value)
        for (name, split), metric in then.items()
        if (name, split) in now and now[name, split].value != metric.value and name not in ("latency", "throughput")
    }
    step = replace(step, files=files, metrics=numbers)
    if made.id in ws.dropped:
        return step
    from llmos_cli.operations.weights import compare

    weights = compare(ws.checkpoint(made.id), again, emit=ignore)
    most = max((w for w in weights if w.change is not None), key=lambda w: w.change or 0.0, default=None)
    return replace(step, weight=most.name, change=most.change) if most else step


def _take_its_place(scratch: Workspace, made: Manifest, again: Checkpoint) -> None:
    """The same files under the id that the next step names as its parent."""
    place = scratch.checkpoints / made.id
    if place.exists():
        return  # made within the same second: it is the same checkpoint
    with scratch.stage() as staged:
        for name in made.tree:
            target = staged / name
            atomic.make_directory(target.parent)
            os.link(again.path / name, target)
        made.write(staged)
        atomic.publish(staged, place)
