"""`llmos train`: from data and a config to a checkpoint, as one run that commits whole or can be resumed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from llmos_cli import device
from llmos_cli.core.config import Resolved
from llmos_cli.core.manifest import Made
from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.core.refs import RUNS
from llmos_cli.core.runs import check_resumable
from llmos_cli.core.view import Line, Lines, Span, duration, number, short, size
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.events import Emit, Metric, Note, Resumed
from llmos_cli.models.load import load
from llmos_cli.operations.config import note_unread
from llmos_cli.operations.determinism import determinism
from llmos_cli.operations.environment import environment
from llmos_cli.operations.fit import Fitted, fit
from llmos_cli.operations.training import divergence, state
from llmos_cli.operations.training import teacher as teaching
from llmos_cli.operations.training.beginning import beginning, from_codes
from llmos_cli.operations.training.holding import Held
from llmos_cli.operations.training.resumption import resumption
from llmos_cli.operations.training.rounding import Rounded, rounding, write
from llmos_cli.operations.training.start import Start, held, make_model, start, stored_dtype
from llmos_cli.options.verbs import TrainConfig
from llmos_cli.tasks.base import Task
from llmos_cli.tasks.scoring import evaluate

if TYPE_CHECKING:
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Checkpoint, Workspace

MEASURED = ("validation", "test")
BATCH = 16
"""Samples at once when the saved checkpoint is measured: as `eval` does, so that both give the same number."""


@dataclass(frozen=True)
class TrainResult:
    """`metrics`: split -> name -> value, of the checkpoint as it was read back from disk; `kept_step`: the step its weights
    are of; `rate` in `rate_unit` per second; `bytes` of all its files."""

    checkpoint: str
    run: str
    parent: str
    branch: str
    task: str
    parameters: int
    bytes: int
    steps: int
    kept_step: int
    seconds: float
    stopped_early: bool
    rate: float
    rate_unit: str
    precision: str
    compiled: bool
    metrics: Mapping[str, Mapping[str, float]]

    def view(self) -> Lines:
        head: Line = (
            Span(short(self.checkpoint), "id"),
            f"  {self.task}, {self.parameters:,} parameters, {size(self.bytes)}",
        )
        how = f"{self.steps:,} steps in {duration(self.seconds)}, {self.rate:,.0f} {self.rate_unit}/s, {self.precision}"
        notes = [", compiled" if self.compiled else "", ", stopped early" if self.stopped_early else ""]
        kept = f", weights of step {self.kept_step:,}" if self.kept_step != self.steps else ""
        return Lines([head, how + "".join(notes) + kept, *self._measured()])

    def _measured(self) -> list[Line]:
        return [
            f"{split}: " + ", ".join(f"{name} {number(value)}" for name, value in values.items())
            for split, values in self.metrics.items()
        ]


def train(ws: Workspace, rev: str | None, resolved: Resolved, *, move: bool = True, emit: Emit) -> TrainResult:
    """Train from scratch, or from the checkpoint `rev`; `move`: whether the current branch goes to the result."""
    onto = ws.onto()
    parent = ws.checkpoint(rev) if rev is not None else None
    teacher, resolved = teaching.chosen(ws, resolved)
    uses = [each.id for each in (parent, teacher) if each]
    with ws.begin("train", config=resolved.mapping, files=resolved.files, parents=uses, onto=onto) as run:
        run.listen(emit)
        result = carry_out(ws, run, parent, resolved, resume=False, move=move)
        note_unread(resolved, lambda message: run.emit(Note(message, level="warning")))
        return result


def resume(
    ws: Workspace, name: str | None, *, sets: Sequence[str] = (), unsets: Sequence[str] = (), emit: Emit
) -> TrainResult:
    """Go on with an interrupted training run: the run `name`, or the current branch's last one.

    As it was configured, but for what `sets` and `unsets` change of how it is optimised (`training/resumption.py`).
    """
    record = ws.runs.find(name) if name else _last_interrupted(ws)
    if record.operation != "train":
        raise UsageError(
            f"run {record.id} is a {record.operation}, not a training run", hint="`llmos ps --all` lists every run"
        )
    check_resumable(record)
    again = resumption(record, sets=sets, unsets=unsets)
    if again.changes and (made := ws.refs.read(RUNS + record.id)):
        raise UsageError(
            f"run {record.id} has saved {short(made)} already: how it was optimised cannot change any more",
            hint=f"`llmos train --resume --run {record.id}`, with nothing else, measures it and ends the run",
        )
    with ws.runs.resume(record.id) as run:
        run.listen(emit)
        divergence.forget(run.state)
        if again.changes:  # told before it is written: cut off in between, the run goes on by what it told
            run.emit(Resumed(state.step(run.state), again.changes))
        if not again.recorded:
            run.reconfigure(again.resolved.mapping)
        return carry_out(ws, run, _parent(ws, run, again.resolved), again.resolved, resume=True, move=True)


def _parent(ws: Workspace, run: Run, resolved: Resolved) -> Checkpoint | None:
    """What a run began from: of the checkpoints that it uses, the last is its teacher where it has one."""
    uses = list(run.started.parents)
    if uses and uses[-1] == resolved.mapping["train"]["teacher"]:
        uses.pop()
    return ws.checkpoint(uses[0]) if uses else None


def _last_interrupted(ws: Workspace) -> Any:
    """Newest first: the first training run that began on the current branch decides."""
    base = ws.head().name
    for record in reversed(ws.runs.list()):
        if record.operation == "train" and record.base == base and not record.alive and record.status != "done":
            return record
    raise NotFound(
        f"no training run on {base} was interrupted", hint="`llmos ps --all` lists runs; `--run ID` names one"
    )


def carry_out(
    ws: Workspace,
    run: Run,
    parent: Checkpoint | None,
    resolved: Resolved,
    *,
    resume: bool,
    move: bool,
    resumable: bool = True,
) -> TrainResult:
    """All that happens within a training run; `resumable`: whether it saves what a resumption needs."""
    config: TrainConfig = resolved.config
    teacher, resolved = teaching.chosen(ws, resolved)
    begin = start(ws, parent, config, teacher)
    for note in begin.prepared.notes:
        run.emit(Note(note, level="warning"))
    model = make_model(begin, ws, parent, config, run.emit)
    if teacher is not None:
        teaching.check(teacher, begin, model, config.train)
    splits = begin.prepared.splits
    masks = held(begin, ws, parent, model, config, run.emit)
    again = resume and state.exists(run.state)  # which holds the codes
    begun = {} if again else beginning(begin, parent, model, config, splits["train"], emit=run.emit)
    with rounding(model, config.train.quantize, stored_dtype(begin), begun) as rounded:
        if rounded.fakes:
            run.emit(Note(rounded.told(model)))
        fitted = fit(
            model,
            splits["train"],
            splits.get("validation"),
            begin.task,
            config.train,
            seed=config.seed,
            facts=begin.prepared.facts,
            state=run.state if resumable else None,
            resume=resume,
            emit=run.emit,
            teacher=teaching.teaching(ws, teacher, begin, config.train, emit=run.emit) if teacher else None,
            held=Held(rounded.masks(masks)),
            from_start=from_codes(begin, parent, config),
        )
    checkpoint = _commit(ws, run, model, rounded, begin, resolved, fitted, parent, move)
    metrics = _measured(run, checkpoint, begin)
    return _result(ws, run, checkpoint, parent, begin, fitted, model, metrics, move)


def _commit(
    ws: Workspace,
    run: Run,
    model: Any,
    rounded: Rounded,
    begin: Start,
    resolved: Resolved,
    fitted: Fitted,
    parent: Checkpoint | None,
    move: bool,
) -> Checkpoint:
    """Save the model and make it a checkpoint that says how it was made."""
    facts = {**environment(), "precision": fitted.precision, "compiled": fitted.compiled, **_told_of_resuming(run)}
    made = Made(
        operation="train",
        parents=(parent.id,) if parent else (),
        config={
            **resolved.mapping,
            "model": begin.model.model_dump(mode="json"),
            "data": begin.data.model_dump(mode="json"),
        },
        data=begin.prepared.fingerprint,
        environment={**facts, "determinism": determinism("train", resolved.mapping, facts)},
        seed=resolved.config.seed,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    with ws.stage() as folder:
        write(
            ws,
            model,
            rounded,
            folder,
            dtype=stored_dtype(begin),
            processor=begin.prepared.processor,
            parent=parent.path if parent else None,
        )
        return run.commit(folder, made, move=move)


def _told_of_resuming(run: Run) -> dict[str, str]:
    """The settings that changed on the way: `config` has only those that the run ended with."""
    events, _ = read_events(run.path / EVENTS)
    told = [Resumed(event["step"], event["settings"]).told for event in events if event["event"] == "resumed"]
    return {"resumed": "; ".join(told)} if told else {}


def _measured(run: Run, checkpoint: Checkpoint, begin: Start) -> dict[str, dict[str, float]]:
    """The numbers of the checkpoint as it lies on disk, read back: what was rounded in saving counts."""
    model = device.move(load(checkpoint.path), device.pick())
    found = {}
    for name in MEASURED:
        split = begin.prepared.splits.get(name)
        if split is None or len(split) == 0:
            continue
        found[name] = measure(begin.task, model, split, begin.prepared.facts, emit=run.emit, stage=f"measure {name}")
        for metric, value in found[name].items():
            run.emit(Metric(metric, value, split=name, checkpoint=checkpoint.id, samples=begin.prepared.rows(name)))
    return found


def measure(
    task: Task, model: nn.Module, split: Any, facts: Mapping[str, Any], *, emit: Emit, stage: str
) -> dict[str, float]:
    return task.metrics(evaluate(task, model, split, batch_size=BATCH, emit=emit, stage=stage), facts)


def _result(
    ws: Workspace,
    run: Run,
    checkpoint: Checkpoint,
    parent: Checkpoint | None,
    begin: Start,
    fitted: Fitted,
    model: nn.Module,
    metrics: Mapping[str, Mapping[str, float]],
    move: bool,
) -> TrainResult:
    return TrainResult(
        checkpoint=checkpoint.id,
        run=run.id,
        parent=parent.id if parent else "",
        branch=run.base if move and not ws.keep_branch else "",
        task=begin.task.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=checkpoint.manifest.size,
        steps=fitted.steps,
        kept_step=fitted.step,
        seconds=fitted.seconds,
        stopped_early=fitted.stopped_early,
        rate=fitted.rate,
        rate_unit=fitted.rate_unit,
        precision=fitted.precision,
        compiled=fitted.compiled,
        metrics=metrics,
    )
