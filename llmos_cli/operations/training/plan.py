"""`llmos train --dry-run`: what a run would take, said before it begins: parameters, samples, steps, memory, time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from llmos_cli import device
from llmos_cli.core.view import Lines, duration, short, size
from llmos_cli.events import Emit, Note
from llmos_cli.methods import parameters
from llmos_cli.models.load import skeleton
from llmos_cli.operations.training import budget, work
from llmos_cli.operations.training import teacher as teaching
from llmos_cli.operations.training.precision import precision_of
from llmos_cli.operations.training.rounding import chosen
from llmos_cli.operations.training.start import Start, held, make_model, start, stored_dtype
from llmos_cli.operations.training.work import Work
from llmos_cli.options.verbs import TrainOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Checkpoint, Workspace

EFFICIENCY = 0.5
"""Share of a square matrix product's speed that small models reach in training."""
FP32 = 4
LOOKED_AT = 4
"""Samples that a forward pass is counted over."""


@dataclass(frozen=True)
class TrainPlan:
    """`positions`: scored positions (tokens, or labels) of a sample, at most; `steps` is an estimate where `seconds` is the budget,
    and the other way round; `teacher` is an id, and `teaches` how its logits are come by."""

    task: str
    model: str
    parameters: int
    trained: int
    samples: int
    positions: int
    steps: int
    seconds: float
    epochs: float
    memory: int
    memory_free: int
    device: str
    precision: str
    optimizer: str
    teacher: str = ""
    teaches: str = ""

    def view(self) -> Lines:
        trained = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        return Lines(
            [
                f"model    {self.model}, {self.parameters:,} parameters{trained}, for {self.task}",
                f"data     {self.samples:,} training samples"
                + (f" of {self.positions:,} tokens" if self.positions > 1 else ""),
                f"run      about {self.steps:,} steps in {duration(self.seconds)}, {self.epochs:.2g} epochs, {self.optimizer}",
                *([f"teacher  {short(self.teacher)}, logits {self.teaches}"] if self.teacher else []),
                f"memory   about {size(self.memory)} of {size(self.memory_free)} free",
                f"device   {self.device}, {self.precision}",
            ]
        )


def plan(ws: Workspace, rev: str | None, resolved: Resolved, *, emit: Emit) -> TrainPlan:
    """Prepare the data and build the model, as the run would, and stop there."""
    config = resolved.config
    parent = ws.checkpoint(rev) if rev is not None else None
    teacher, resolved = teaching.chosen(ws, resolved)
    begin = start(ws, parent, config, teacher)
    for note in begin.prepared.notes:
        emit(Note(note, level="warning"))
    model = make_model(begin, ws, parent, config, emit)
    planned = _plan(begin, model, config.train, live=_live(teacher, config.train))
    held(begin, ws, parent, model, config, emit)
    if config.train.quantize.bits is not None:
        chosen(model, config.train.quantize, stored_dtype(begin))
    if teacher is None:
        return planned
    teaches = teaching.planned(ws, teacher, begin, model, config.train)
    return replace(planned, teacher=teacher.id, teaches=teaches)


def _live(teacher: Checkpoint | None, options: TrainOptions) -> nn.Module | None:
    """The teacher where it takes part in every step; without weights."""
    return skeleton(teacher.path) if teacher is not None and options.teacher_top is None else None


def _plan(begin: Start, model: nn.Module, options: TrainOptions, *, live: nn.Module | None) -> TrainPlan:
    on = device.pick()
    split = begin.prepared.splits["train"]
    positions = split.batch([0])["labels"].numel()
    one = work.of_sample(model, split.batch(range(min(LOOKED_AT, len(split)))))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    size_of_step = options.batch_size * options.accumulation
    step_seconds = size_of_step * _seconds(model, one, live=live)
    steps, seconds = _length(options, step_seconds, samples=len(split))
    return TrainPlan(
        task=begin.task.name,
        model=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=trained,
        samples=len(split),
        positions=positions,
        steps=steps,
        seconds=seconds,
        epochs=steps * size_of_step / max(1, len(split)),
        memory=_memory(model, begin, options, one, positions, live=live),
        memory_free=device.memory_free(on),
        device=device.device_name(on),
        precision=str(precision_of(options, on)).removeprefix("torch."),
        optimizer=options.optimizer,
    )


def _length(options: TrainOptions, step_seconds: float, *, samples: int) -> tuple[int, float]:
    bounds = budget.of(options, samples=samples)
    by_clock = math.inf if bounds.seconds is None else bounds.seconds / step_seconds
    steps = max(1, round(min(by_clock, bounds.steps or math.inf)))
    return steps, min(steps * step_seconds, bounds.seconds or math.inf)


def _seconds(model: nn.Module, one: Work, *, live: nn.Module | None) -> float:
    """Of a sample in training: six operations for each product, two for each of the teacher's, which sees the same positions; at
    half the speed of a square product."""
    on = device.pick()
    positions = one.products / max(1, _computing(model))
    operations = 6 * one.products + (2 * positions * _computing(live) if live is not None else 0)
    return max(1.0, operations) / (EFFICIENCY * device.speed([device.compute_dtype(on)], on)[0])


def _computing(model: nn.Module) -> int:
    """Weights that are multiplied with every position: all but the tables that are only looked up."""
    parts = parameters.of_model(model)
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    tables = parts.embeddings if tied else []
    return sum(p.numel() for p in [*parts.matrices, *parts.heads, *tables])


def _memory(
    model: nn.Module, begin: Start, options: TrainOptions, one: Work, positions: int, *, live: nn.Module | None
) -> int:
    """Weights, gradients, two moments, the best weights, the teacher's; for a batch, what layers put out twice (a twelfth of it
    where it is computed again) and the logits three times, the teacher's twice."""
    weights = sum(p.numel() for p in model.parameters()) * FP32
    kept = one.outputs * (2 / 12 if options.gradient_checkpointing else 2)
    classes = begin.prepared.facts.get("vocab_size" if begin.task.name == "causal-lm" else "num_labels", 0)
    logits = positions * (3 * classes if live is None else 5 * classes)
    taught = sum(p.numel() for p in live.parameters()) * FP32 if live is not None else 0
    return int(5 * weights + taught + options.batch_size * FP32 * (kept + logits))
