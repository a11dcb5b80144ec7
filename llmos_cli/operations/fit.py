"""The one training loop: `train` starts from labels, healing and distillation from a teacher, all of them end here.

    fitted = fit(model, split, validation, task, options, seed=0, emit=emit)

The model is trained in place. A run is a pure function of its options, seed and data when its budget is in steps: samples
come by (seed, epoch), and the resume state holds all the rest, so being cut off and resumed changes no bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmos_cli import catalog, device
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.methods import parameters
from llmos_cli.operations.training import budget, loss, schedule, state
from llmos_cli.operations.training.holding import FREE, Held, Zeros, moving
from llmos_cli.operations.training.lessons import Lessons, checkpoint_gradients
from llmos_cli.operations.training.meter import Meter
from llmos_cli.operations.training.precision import precision_of
from llmos_cli.operations.training.runaway import diverged, runs_away
from llmos_cli.operations.training.stopping import Stopping
from llmos_cli.operations.training.top import Cached
from llmos_cli.operations.training.validation import Validations, looked_at
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Split, Task


@dataclass(frozen=True)
class Fitted:
    """What a training run did: `value` is the task's metric on validation of the weights kept (None: not validated), made at
    `step` of `steps`; `rate` in `rate_unit` per second, of the steps alone."""

    steps: int
    seconds: float
    loss: float
    step: int
    value: float | None
    stopped_early: bool
    compiled: bool
    precision: str
    rate: float
    rate_unit: str


def fit(
    model: nn.Module,
    split: Split,
    validation_split: Split | None,
    task: Task,
    options: TrainOptions,
    *,
    seed: int,
    facts: Mapping[str, Any] | None = None,
    state: Path | None = None,
    resume: bool = False,
    emit: Emit = ignore,
    teacher: nn.Module | Cached | None = None,
    held: Held = FREE,
    fixed: bool = False,
    from_start: bool = False,
    stage: str = "train",
) -> Fitted:
    """Train `model` on `split` as `options` say.

    `facts`: what the task's metrics need to know. `state`: a folder for the resume state; with `resume` the run goes on from
    what it holds. `teacher`: a model whose logits are learnt (`options.teacher_weight` of the loss), or what one said of each
    sample of `split`. `held`: which weights move. `fixed`: resuming cannot change the options, so that a run which diverged is
    over. `from_start`: whether the weights at the start are worth keeping too, where none that are validated later are better;
    beside a teacher that is by the loss that is learnt.

    Raises LlmosError when the loss is no longer finite (the weights before that step are kept), UsageError when nothing
    bounds the run, KeyboardInterrupt or Terminated on a signal, after the step in progress and the state are done.
    """
    if len(split) == 0:
        raise UsageError("There is not one training sample.", hint="Is data.source empty, or its training split?")
    with Stopping() as stopping, moving(model, held.trainable):
        looked = looked_at(validation_split, options)
        device.use_threads()
        device.seed(seed)
        lessons = Lessons(model, split, options, teacher, seed=seed)
        # Further from its teacher than it began, a model may still score better on a few samples.
        judge = lessons.teacher if from_start and isinstance(lessons.teacher, nn.Module) else None
        validations = Validations(task, model, looked, options, facts=facts or {}, judge=judge, emit=emit)
        run = _Run(lessons, validations, options, held, directory=state, fixed=fixed, emit=emit, stage=stage)
        if resume:
            run.restore()
        if from_start:
            run.consider_start()
        return run.to_the_end(stopping)


class _Run:
    """A training run in progress: what changes from step to step, and the parts that change it."""

    def __init__(
        self,
        lessons: Lessons,
        validations: Validations,
        options: TrainOptions,
        held: Held,
        *,
        directory: Path | None,
        fixed: bool,
        emit: Emit,
        stage: str,
    ) -> None:
        self.lessons, self.validations, self.options = lessons, validations, options
        self.directory, self.fixed, self.emit = directory, fixed, emit
        self.model, samples = lessons.model, len(lessons.split)
        self.zeros, self.holding = Zeros(self.model, held.masks), held.by
        self.budget = budget.of(options, samples=samples)
        if shortened := budget.cut_short(options, samples=samples):
            emit(Note(shortened, level="warning"))
        self.optimizer = _optimizer(self.model, options, beside=lessons.matching)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.first_loss = self.last_loss = self.gradient_norm = math.nan
        self.saved_validations = 0
        self.meter = Meter(emit, stage, lessons.unit, lessons.on)
        if options.gradient_checkpointing:
            checkpoint_gradients(self.model)

    def restore(self) -> None:
        """Go on from the saved state; from the start where the run was cut off before one was saved."""
        if self.directory is None or not state.exists(self.directory):
            return
        self.validations.best, position = state.load(
            self.directory, model=self.model, beside=self.lessons.matching, optimizer=self.optimizer
        )
        self.budget.restore(step=position.step, elapsed=position.elapsed, lead=position.lead)
        self.validations.done = self.saved_validations = position.validations
        self.first_loss = position.first_loss
        if position.compiled:
            self._compile()

    def consider_start(self) -> None:
        """The weights before the first step count as one of those of which the best are kept."""
        if self.validations.split is not None and self.budget.step == 0:
            self._validate()
            self.validations.done = 0

    def to_the_end(self, stopping: Stopping) -> Fitted:
        self.zeros.hold()
        while self.budget.progress < 1 and not self.validations.out_of_patience():
            if self.lessons.worth_compiling(self.budget.step, self._eager_seconds_left()):
                self._compile()
            self._step()
            self._report()
            if self.validations.due(self.budget):
                self._validate()
            if stopping.asked:
                self._save()
                stopping.stop(saved=self.directory is not None)
            if self._save_due():
                self._save()
        self._report(now=True)
        return self._finish()

    def _eager_seconds_left(self) -> float:
        by_steps = (self.budget.steps or math.inf) * self.meter.fastest
        by_clock = (self.budget.seconds or math.inf) - self.budget.elapsed
        return min(by_steps, by_clock)

    def _compile(self) -> None:
        started = time.monotonic()
        self.lessons.compile(self.budget.step, self.emit)
        self.optimizer.zero_grad(set_to_none=True)
        self.budget.set_aside(time.monotonic() - started)
        self.meter.forget_speed()

    def _step(self) -> None:
        """One optimizer step over `accumulation` lessons; the weights change only when all of it is finite."""
        started = time.monotonic()
        lessons = self.lessons.of_step(self.budget.step)
        positions = sum(loss.scored(batch) for batch, _ in lessons)
        self._set_learning_rate()
        self.last_loss = sum(self.lessons.learn(batch, top, positions) for batch, top in lessons)
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.trained, self.options.clip_norm or math.inf))
        self._check_finite()
        if self.budget.step == 0:
            self.first_loss = self.last_loss
        self._move()
        self.meter.add(positions, self.last_loss, time.monotonic() - started)

    def _set_learning_rate(self) -> None:
        learning_rate = self.options.learning_rate * schedule.factor(self.options, self.budget.midway)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def _move(self) -> None:
        """Along the gradient, and whatever is held back to its place."""
        if self.holding:
            self.holding.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.zeros.hold()
        self.budget.advance()
        if self.holding:
            self.holding.after_step(self.budget.progress)

    def _check_finite(self) -> None:
        if math.isfinite(self.last_loss) and math.isfinite(self.gradient_norm):
            return
        what = "gradient" if math.isfinite(self.last_loss) else "loss"
        self.optimizer.zero_grad(set_to_none=True)
        raise self._diverged(f"The {what} is no longer finite at step {self.budget.step + 1}.")

    def _diverged(self, sentence: str) -> LlmosError:
        return diverged(
            sentence,
            directory=self.directory,
            step=self.budget.step,
            learning_rate=self.options.learning_rate,
            fixed=self.fixed,
        )

    def _report(self, *, now: bool = False) -> None:
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.meter.report(self.budget, learning_rate=learning_rate, gradient_norm=self.gradient_norm, now=now)

    def _validate(self) -> None:
        seen = self.validations.look(self.budget)
        if not math.isfinite(seen.loss):  # classes still have a largest logit, and an accuracy, where all are NaN
            raise self._diverged(f"The validation loss is no longer finite after step {self.budget.step}.")
        self.validations.consider(seen, self.budget.step)

    def _save_due(self) -> bool:
        if self.budget.progress >= 1:
            return False
        if self.options.save_every:
            return self.budget.step % self.options.save_every == 0
        return self.validations.done > self.saved_validations

    def _save(self) -> None:
        if self.directory is None:
            return
        state.save(
            self.directory,
            model=self.model,
            beside=self.lessons.matching,
            optimizer=self.optimizer,
            best=self.validations.best,
            position=self._position(),
            sound=self._sound(),
        )
        self.saved_validations = self.validations.done

    def _position(self) -> state.Position:
        here, done = self.budget, self.validations.done
        return state.Position(here.step, here.elapsed, here.lead, done, self.lessons.compiled, self.first_loss)

    def _sound(self) -> bool:
        """Whether this is a state to come back to: the latest validation is the best, and no loss has run away."""
        latest = max(self.last_loss, self.validations.loss)
        return self.validations.best.behind == 0 and not runs_away(latest, first=self.first_loss)

    def _finish(self) -> Fitted:
        best = self.validations.best
        if best.weights is not None and best.step != self.budget.step:
            self.model.load_state_dict(best.weights)
        self.zeros.check()
        kept = best.step if best.weights is not None else self.budget.step
        return Fitted(
            steps=self.budget.step,
            seconds=self.budget.elapsed,
            loss=self.last_loss,
            step=kept,
            value=best.value if best.step == kept else None,
            stopped_early=self.budget.progress < 1,
            compiled=self.lessons.compiled,
            precision=str(precision_of(self.options, self.lessons.on)).removeprefix("torch."),
            rate=self.meter.rate,
            rate_unit=self.meter.unit,
        )


def _optimizer(model: nn.Module, options: TrainOptions, *, beside: nn.Module | None = None) -> torch.optim.Optimizer:
    method = catalog.method("train", options.optimizer).load()
    own = options.of_method(options.optimizer, method.Options)
    parts = parameters.of_model(model)
    if beside is not None:
        parts = replace(parts, heads=[*parts.heads, *beside.parameters()])
    optimizer: torch.optim.Optimizer = method.optimizer(
        parts, own, learning_rate=options.learning_rate, weight_decay=options.weight_decay
    )
    return optimizer
