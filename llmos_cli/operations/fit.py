"""The one training loop: `train` starts from labels, healing and distillation from a teacher, all of them end here.

    fitted = fit(model, split, validation, task, options, seed=0, emit=emit)

The model is trained in place. A run is a pure function of its options, seed and data when its budget is in steps: samples
come by (seed, epoch), and the resume state holds all the rest, so being cut off and resumed changes no bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmos_cli import catalog, device
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Metric, Note, ignore
from llmos_cli.methods import parameters
from llmos_cli.models.compiling import FAILURES, explained
from llmos_cli.operations.training import budget, compiling, divergence, hidden, loss, schedule, state, validation
from llmos_cli.operations.training.loss import Taught
from llmos_cli.operations.training.meter import Meter
from llmos_cli.operations.training.order import Order
from llmos_cli.operations.training.stopping import Stopping
from llmos_cli.operations.training.top import Cached, Top
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Batch, Split, Task
from llmos_cli.tasks.scoring import evaluate

RUNAWAY = 2.0
"""Times the first step's loss (or one nat) from which training is on its way to infinity."""


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


class Holding(Protocol):
    """What keeps weights where they are to be while they train, step by step."""

    def before_step(self) -> None:
        """The gradients of the step are there, finite and clipped; the weights have not moved yet."""

    def after_step(self, progress: float) -> None:
        """The weights have moved; `progress` is the share of the run that is done."""


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
    masks: Mapping[str, Tensor] | None = None,
    trainable: Callable[[str], bool] | None = None,
    fixed: bool = False,
    holding: Holding | None = None,
    from_start: bool = False,
    stage: str = "train",
) -> Fitted:
    """Train `model` on `split` as `options` say.

    `facts`: what the task's metrics need to know. `state`: a folder for the resume state; with `resume` the run goes on from
    what it holds. `teacher`: a model whose logits are learnt (`options.teacher_weight` of the loss), or what one said of each
    sample of `split`. `masks`: parameter name -> True where a weight may differ from zero; held after every step. `trainable`: names of the parameters to train,
    all that ask for a gradient when None. `fixed`: resuming cannot change the options, so that a run which diverged is over. `holding`:
    what else holds weights, by rules that change as training goes on. `from_start`: whether the weights at the start are worth keeping too,
    where none that are validated later are better; beside a teacher that is by the loss that is learnt.

    Raises LlmosError when the loss is no longer finite (the weights before that step are kept), UsageError when nothing
    bounds the run, KeyboardInterrupt or Terminated on a signal, after the step in progress and the state are done.
    """
    if len(split) == 0:
        raise UsageError("There is not one training sample.", hint="Is data.source empty, or its training split?")
    with Stopping() as stopping, _training(model, trainable):
        run = _Run(
            model=model,
            split=split,
            checks=_checks(validation_split, options),
            task=task,
            options=options,
            seed=seed,
            facts=facts or {},
            directory=state,
            emit=emit,
            teacher=teacher,
            masks=_masked(model, masks or {}),
            fixed=fixed,
            holding=holding,
            stage=stage,
        )
        if resume:
            run.restore()
        run.from_start = from_start
        if from_start:
            run.consider_start()
        return run.to_the_end(stopping)


@contextmanager
def _training(model: nn.Module, trainable: Callable[[str], bool] | None) -> Iterator[None]:
    """Only the chosen parameters ask for a gradient, for as long as training lasts."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(asked[parameter] and (trainable is None or trainable(name)))
    model.train()
    try:
        yield
    finally:
        model.eval()
        for parameter, before in asked.items():
            parameter.requires_grad_(before)
            parameter.grad = None


def _checks(split: Split | None, options: TrainOptions) -> Split | None:
    """What validation looks at; nothing where there is no validation data."""
    if split is not None and len(split):
        return validation.Sample(split, options.eval_samples)
    if options.patience is not None:
        raise UsageError("train.patience needs validation data.", hint="Unset train.patience, or set data.splits.")
    return None


def _masked(model: nn.Module, masks: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    named = dict(model.named_parameters())
    return [(named[name], device.move(mask, named[name].device)) for name, mask in masks.items()]


class _Run:
    """A training run in progress: what changes from step to step, and the parts that change it."""

    def __init__(
        self,
        *,
        model: nn.Module,
        split: Split,
        checks: Split | None,
        task: Task,
        options: TrainOptions,
        seed: int,
        facts: Mapping[str, Any],
        directory: Path | None,
        emit: Emit,
        teacher: nn.Module | Cached | None,
        masks: list[tuple[nn.Parameter, Tensor]],
        fixed: bool,
        holding: Holding | None,
        stage: str,
    ) -> None:
        device.use_threads()
        device.seed(seed)
        self.model, self.split, self.checks, self.task, self.options = model, split, checks, task, options
        self.seed, self.facts, self.directory, self.emit, self.masks = seed, facts, directory, emit, masks
        self.fixed = fixed
        self.holding = holding
        self.from_start = False
        self.on = next(model.parameters()).device
        self.teacher = teacher.eval() if isinstance(teacher, nn.Module) else teacher
        self.matching = self._matching()
        lengths = getattr(split, "lengths", None)
        self.order = Order(len(split), size=options.batch_size, seed=seed, lengths=lengths)
        self.budget = budget.of(options, samples=len(split))
        if shortened := budget.cut_short(options, samples=len(split)):
            emit(Note(shortened, level="warning"))
        self.optimizer = _optimizer(model, options, beside=self.matching)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.loss: Callable[..., Tensor] = loss.of(options, taught=teacher is not None, matching=self.matching)
        self.compiled = False
        self.precision = precision_of(options, self.on)
        self.best = validation.Best()
        self.validations = self.saved_validations = 0
        self.first_loss = self.last_loss = self.gradient_norm = math.nan
        self.checked_loss = 0.0
        self.meter = Meter(emit, stage, "tokens" if _counts_tokens(split) else "samples", self.on)
        if options.gradient_checkpointing:
            _checkpoint_gradients(model)

    def _matching(self) -> hidden.Matching | None:
        """The hidden states to compare; its projections are trained beside the model, and left behind at the end."""
        if self.teacher is None or not self.options.hidden_weight:
            return None
        assert isinstance(self.teacher, nn.Module), "hidden states are not cached"
        sample = device.move(self.split.batch([0]), self.on)
        return hidden.matching(self.model, self.teacher, sample, seed=self.seed)

    def restore(self) -> None:
        """Go on from the saved state; from the start where the run was cut off before one was saved."""
        if self.directory is None or not state.exists(self.directory):
            return
        self.best, position = state.load(
            self.directory, model=self.model, beside=self.matching, optimizer=self.optimizer
        )
        self.budget.restore(step=position.step, elapsed=position.elapsed, lead=position.lead)
        self.validations = self.saved_validations = position.validations
        self.first_loss = position.first_loss
        if position.compiled:
            self._compile()

    def consider_start(self) -> None:
        """The weights before the first step count as one of those of which the best are kept."""
        if self.checks is not None and self.budget.step == 0:
            self._validate(self.checks)
            self.validations = 0

    def to_the_end(self, stopping: Stopping) -> Fitted:
        self._hold_masks()
        while self.budget.progress < 1 and not self._out_of_patience():
            self._compile_if_it_repays()
            self._step()
            self._report()
            if self.checks is not None and validation.due(self.options, self.budget, self.validations):
                self._validate(self.checks)
            if stopping.asked:
                self._save()
                stopping.stop(saved=self.directory is not None)
            if self._save_due():
                self._save()
        self._report(now=True)
        return self._finish()

    def _compile_if_it_repays(self) -> None:
        asked = self.options.compile
        decides = asked == "auto" and self.budget.step == compiling.EAGER_STEPS
        vary = self.order.lengths is not None
        if not self.compiled and (
            asked == "on" or (decides and compiling.repays(self._eager_seconds_left(), lengths_vary=vary))
        ):
            self._compile()

    def _eager_seconds_left(self) -> float:
        by_steps = (self.budget.steps or math.inf) * self.meter.fastest
        by_clock = (self.budget.seconds or math.inf) - self.budget.elapsed
        return min(by_steps, by_clock)

    def _compile(self) -> None:
        """Compile on a trial pass that leaves no trace; where it cannot be done, `auto` goes on without."""
        started, eager = time.monotonic(), self.loss
        self.loss, self.compiled = compiling.compiled(eager), True
        try:
            with compiling.untouched(self.model):
                self._backward(*self._batch(0), 1)
        except FAILURES as problem:
            failure = explained(problem, instead="train.compile=off")
            if self.options.compile == "on":
                raise failure from problem
            self.emit(Note(f"{failure.message}; training goes on without.", level="warning"))
            self.loss, self.compiled = eager, False
        self.optimizer.zero_grad(set_to_none=True)
        self.budget.set_aside(time.monotonic() - started)
        self.meter.forget_speed()

    def _step(self) -> None:
        """One optimizer step over `accumulation` forward passes; the weights change only when all of it is finite."""
        started = time.monotonic()
        batches = [self._batch(part) for part in range(self.options.accumulation)]
        positions = sum(loss.scored(batch) for batch, _ in batches)
        learning_rate = self.options.learning_rate * schedule.factor(self.options, self.budget.midway)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.last_loss = sum(self._backward(batch, taught, positions) for batch, taught in batches)
        self.gradient_norm = float(nn.utils.clip_grad_norm_(self.trained, self.options.clip_norm or math.inf))
        self._check_finite()
        if self.budget.step == 0:
            self.first_loss = self.last_loss
        if self.holding:
            self.holding.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._hold_masks()
        self.budget.advance()
        if self.holding:
            self.holding.after_step(self.budget.progress)
        self.meter.add(positions, self.last_loss, time.monotonic() - started)

    def _batch(self, part: int) -> tuple[Batch, Top | None]:
        """The samples of one forward pass, and what the teacher said of them if that is known."""
        number = self.budget.step * self.options.accumulation + part
        rows = self.order.batch(number)
        batch = self.split.batch(rows, augment_seed=(self.seed * 1_000_003 + number) % 2**31)
        return batch, self.teacher.of(rows, batch["labels"]) if isinstance(self.teacher, Cached) else None

    def _backward(self, batch: Batch, top: Top | None, positions: int) -> float:
        """Add the gradient of one forward pass; returns its share of the step's mean loss."""
        batch = device.move(batch, self.on)
        with self._autocast():
            taught = self._taught(batch, top)
            mean = self.loss(self.model, batch, taught) / max(1, positions)
        mean.backward()  # type: ignore[no-untyped-call]
        return mean.item()

    def _taught(self, batch: Batch, top: Top | None) -> Taught | None:
        if top is not None:
            return Taught(top=Top(*(device.move(part, self.on) for part in top)))
        if isinstance(self.teacher, nn.Module):
            return loss.teach(self.teacher, batch, self.options, self.matching)
        return None

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.options, self.on)

    def _check_finite(self) -> None:
        if math.isfinite(self.last_loss) and math.isfinite(self.gradient_norm):
            return
        what = "gradient" if math.isfinite(self.last_loss) else "loss"
        self.optimizer.zero_grad(set_to_none=True)
        raise LlmosError(
            f"The {what} is no longer finite at step {self.budget.step + 1}.", hint=self._way_on(), final=self.fixed
        )

    def _way_on(self) -> str:
        """The state saved last stays: these weights would give the same loss again, whatever the options are."""
        now = f"(now {self.options.learning_rate:g})"
        if self.directory is None or self.fixed:
            return f"Start again with a lower learning rate {now}."
        good = state.go_back(self.directory, failed_after=self.budget.step)
        divergence.note(self.directory, divergence.Divergence(self.budget.step + 1, good))
        where = f"goes on from step {good}, the last good state" if good else "begins again"
        return f"{divergence.WAY_ON} {where}, with a lower rate {now}."

    def _hold_masks(self) -> None:
        with torch.no_grad():
            for parameter, mask in self.masks:
                parameter.mul_(mask)

    def _report(self, *, now: bool = False) -> None:
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.meter.report(self.budget, learning_rate=learning_rate, gradient_norm=self.gradient_norm, now=now)

    def _validate(self, checks: Split) -> None:
        self.validations = max(self.validations + 1, validation.tenths(self.budget))
        with self._autocast():
            outcome = evaluate(self.task, self.model, checks, batch_size=self.options.batch_size, teacher=self._judge())
        metrics = self.task.metrics(outcome, self.facts)
        value, self.checked_loss = metrics[self.task.metric], metrics["loss"]
        if not math.isfinite(
            self.checked_loss
        ):  # classes still have a largest logit, and an accuracy, where all are NaN
            raise LlmosError(
                f"The validation loss is no longer finite after step {self.budget.step}.",
                hint=self._way_on(),
                final=self.fixed,
            )
        self.emit(Metric(self.task.metric, value, split="validation", step=self.budget.step))
        keep = self.options.keep == "best"
        lower = self.task.lower_is_better
        if "kl" in outcome.extra:
            far = outcome.mean(outcome.extra["kl"])
            value, lower = self._learnt(far, self.checked_loss), True
            self.emit(Metric("kl_teacher", far, split="validation", step=self.budget.step))
        self.best.consider(value, self.budget.step, lower_is_better=lower, model=self.model, keep=keep)

    def _judge(self) -> nn.Module | None:
        """Beside whom the best is chosen, where the start is one of those compared: further from its teacher than it began, a model may
        still score better on a few samples."""
        return self.teacher if self.from_start and isinstance(self.teacher, nn.Module) else None

    def _learnt(self, kl: float, loss: float) -> float:
        """The two as they are weighed in training."""
        return self.options.teacher_weight * kl + (1 - self.options.teacher_weight) * loss

    def _out_of_patience(self) -> bool:
        return self.options.patience is not None and self.best.behind >= self.options.patience

    def _save_due(self) -> bool:
        if self.budget.progress >= 1:
            return False
        if self.options.save_every:
            return self.budget.step % self.options.save_every == 0
        return self.validations > self.saved_validations

    def _save(self) -> None:
        if self.directory is None:
            return
        here = self.budget
        position = state.Position(here.step, here.elapsed, here.lead, self.validations, self.compiled, self.first_loss)
        state.save(
            self.directory,
            model=self.model,
            beside=self.matching,
            optimizer=self.optimizer,
            best=self.best,
            position=position,
            sound=self._sound(),
        )
        self.saved_validations = self.validations

    def _sound(self) -> bool:
        """Whether this is a state to come back to: the latest validation is the best, and no loss has run away."""
        return self.best.behind == 0 and max(self.last_loss, self.checked_loss) <= RUNAWAY * max(1.0, self.first_loss)

    def _finish(self) -> Fitted:
        if self.best.weights is not None and self.best.step != self.budget.step:
            self.model.load_state_dict(self.best.weights)
        for parameter, mask in self.masks:
            assert not parameter[~mask].any(), "a pruned weight came back"
        kept = self.best.step if self.best.weights is not None else self.budget.step
        return Fitted(
            steps=self.budget.step,
            seconds=self.budget.elapsed,
            loss=self.last_loss,
            step=kept,
            value=self.best.value if self.best.step == kept else None,
            stopped_early=self.budget.progress < 1,
            compiled=self.compiled,
            precision=str(self.precision).removeprefix("torch."),
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


def autocast(options: TrainOptions, on: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic of a forward pass."""
    return torch.autocast(on.type, torch.bfloat16, enabled=precision_of(options, on) == torch.bfloat16)


def precision_of(options: TrainOptions, on: torch.device) -> torch.dtype:
    """Of the arithmetic; weights and optimizer stay in fp32."""
    if options.precision == "auto":
        return device.compute_dtype(on)
    return torch.bfloat16 if options.precision == "bfloat16" else torch.float32


def _counts_tokens(split: Split) -> bool:
    """Whether a sample has many positions to be scored."""
    return split.batch([0])["labels"].ndim > 1


def _checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations but each block's input, and compute them again on the way back."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(model).__name__} cannot checkpoint gradients.", hint="Unset train.gradient_checkpointing."
        )
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
