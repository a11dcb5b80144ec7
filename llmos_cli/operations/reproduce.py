"""reproduce: make a checkpoint again from what its manifests recorded, step by step in a scratch workspace, and compare the files' hashes.

Each step is the command that its manifest describes, with the recorded config alone, on the step before as it was made again. The data
is read first: where it is not what it was, nothing is computed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.view import Group, Line, Lines, Span, Table, View, duration, number, short
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Corrupt, LlmosError, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations import lineage, reads, rerun, snapshots
from llmos_cli.operations.changed import Changed, changed
from llmos_cli.operations.reads import Gone, Reads
from llmos_cli.operations.rerun import REDONE

if TYPE_CHECKING:
    from llmos_cli.operations.pipeline.process import Ended


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
                hint="; ".join([*_otherwise(last), f"expected was: {last.expected or 'nothing was recorded'}"]),
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
        yield from (Span(each, "warn") for each in _otherwise(last))
        yield f"{', '.join(last.files)} differ"
        if last.change is not None:
            yield f"the weight that differs most is {last.weight}, by {number(last.change)} of its norm"
        for name, (before, after) in last.metrics.items():
            yield f"{name} was {number(before)} and is {number(after)}"


def _otherwise(step: Step) -> list[str]:
    """What is not as it was then: where anything is, that comes first of all that there is to say."""
    told = [f"{each.key} was {_cell(each.before)} and is {_cell(each.after)}" for each in step.environment]
    return [f"not all is as it was then: {', '.join(told)}"] if told else []


def _cell(value: Any) -> str:
    if value is None:
        return "not recorded"
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _word(step: Step) -> str | Span:
    return (
        Span(step.result, "good" if step.result == "identical" else "bad")
        if step.result != "taken"
        else "taken as it is"
    )


def reproduce(
    ws: Workspace, rev: str = "HEAD", *, ask: Callable[[str], bool] | None = None, emit: Emit = ignore
) -> ReproduceResult:
    """Corrupt (exit 5) where the data is not what it was, Untrusted where a model's own code is not trusted here: `ask` may list it
    with the user's consent. A step that diverges ends it, and is told in the result."""
    line = [*lineage.line(ws, ws.resolve(rev))][::-1]
    if not any(made.made.operation in REDONE for made in line):
        raise UsageError(
            "nothing of this line can be made again", hint="it was imported: `llmos import` brings it anew"
        )
    for parent in (parent for made in line for parent in made.made.parents):
        ws.manifest(parent)  # one that was given up cannot be made again, nor what came from it
    for own in filter(None, map(rerun.module, line)):
        rerun.code(ws, own, ask)
    check_data(ws, line, emit)
    steps: list[Step] = []
    with ws.stage() as staged, rerun.scratch(ws, staged / "workspace") as scratch:
        for made in line:
            if made.made.operation in REDONE:
                emit(Note(f"{made.made.operation} {short(made.id)} again"))
                steps.append(_redone(ws, scratch, made, emit))
            else:
                rerun.lend(ws, scratch, made.id)
                steps.append(Step(made.id, made.made.operation, "taken"))
            if steps[-1].result == "diverged":
                break
    return ReproduceResult(line[-1].id, tuple(steps))


def check_data(ws: Workspace, line: Sequence[Manifest], emit: Emit = ignore) -> None:
    """Corrupt, naming source and split, where what a step reads is not what it was made with."""
    for made in line:
        # What read a checkpoint that cannot be read is compared when that has been made again.
        if made.made.operation in REDONE and not any(map(ws.closed, made.made.parents)):
            try:
                now = reads.today(ws, made, emit)
            except Gone as gone:
                raise Corrupt(
                    f"{gone.source}, which {short(made.id)} was made with, is gone: {gone.message}", hint=gone.hint
                ) from gone
            _compare(made, now)


def _compare(made: Manifest, now: Reads) -> None:
    for place, before in reads.recorded(made).items():
        if (after := now.get(place)) != before:
            raise Corrupt(
                f"{place.told} is not what {short(made.id)} was made with: {_told_apart(before, after or {})}",
                hint="bring it back as it was; its hashes are in `llmos show`, and `llmos data snapshot` would have kept its rows",
            )


def _told_apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if "rows" not in before:
        return "its files have other content now"
    told = f"{after['rows']:,} rows" if after and after["rows"] != before["rows"] else "other rows"
    return f"it had {before['rows']:,} rows and has {told} now"


def _redone(ws: Workspace, scratch: Workspace, made: Manifest, emit: Emit) -> Step:
    started = time.time()
    if kept := snapshots.kept_of(ws, made):
        emit(Note(f"its data is read from snapshot {short(kept)}"))
    ended = rerun.run(ws, scratch, rerun.job(ws, made), emit)
    if ended.code:
        raise _failure(made, ended)
    again = scratch.checkpoint(str(ended.said["checkpoint"]))
    _compare(made, reads.of(made, again.manifest.made.data))
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


def _failure(made: Manifest, ended: Ended) -> LlmosError:
    error = ended.said.get("error") or {}
    return LlmosError(
        f"{made.made.operation} {short(made.id)} cannot be run again: {error.get('message') or ended.failure}",
        hint=str(error.get("hint") or "`llmos show` tells how it was made"),
    )


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
    if ws.closed(made.id):
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
