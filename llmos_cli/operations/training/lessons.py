"""The lessons of a run, one a forward pass: its samples, what the teacher says of them, and the gradient of the loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.compiling import FAILURES, explained
from llmos_cli.operations.training import compiling, hidden, loss
from llmos_cli.operations.training.loss import Taught
from llmos_cli.operations.training.order import Order
from llmos_cli.operations.training.precision import autocast
from llmos_cli.operations.training.top import Cached, Top
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Batch, Split


class Lessons:
    """Those of one run, numbered from 0: `accumulation` of them make a step. `matching`: the hidden states that are compared."""

    def __init__(
        self, model: nn.Module, split: Split, options: TrainOptions, teacher: nn.Module | Cached | None, *, seed: int
    ) -> None:
        self.model, self.split, self.options, self.seed = model, split, options, seed
        self.on = next(model.parameters()).device
        self.teacher = teacher.eval() if isinstance(teacher, nn.Module) else teacher
        self.matching = self._matching()
        self.order = Order(len(split), size=options.batch_size, seed=seed, lengths=getattr(split, "lengths", None))
        self.loss: Callable[..., Tensor] = loss.of(options, taught=teacher is not None, matching=self.matching)
        self.compiled = False

    def _matching(self) -> hidden.Matching | None:
        """Its projections are trained beside the model, and left behind at the end."""
        if self.teacher is None or not self.options.hidden_weight:
            return None
        assert isinstance(self.teacher, nn.Module), "hidden states are not cached"
        sample = device.move(self.split.batch([0]), self.on)
        return hidden.matching(self.model, self.teacher, sample, seed=self.seed)

    @property
    def unit(self) -> str:
        """What is counted: tokens, where a sample has many positions to be scored."""
        return "tokens" if self.split.batch([0])["labels"].ndim > 1 else "samples"

    def of_step(self, step: int) -> list[tuple[Batch, Top | None]]:
        first = step * self.options.accumulation
        return [self.batch(number) for number in range(first, first + self.options.accumulation)]

    def batch(self, number: int) -> tuple[Batch, Top | None]:
        """The samples, and what the teacher said of them if that is known."""
        rows = self.order.batch(number)
        batch = self.split.batch(rows, augment_seed=(self.seed * 1_000_003 + number) % 2**31)
        return batch, self.teacher.of(rows, batch["labels"]) if isinstance(self.teacher, Cached) else None

    def learn(self, batch: Batch, top: Top | None, positions: int) -> float:
        """Add the gradient of one forward pass; returns its share of the mean loss of a step over so many positions."""
        batch = device.move(batch, self.on)
        with autocast(self.options, self.on):
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

    def worth_compiling(self, step: int, eager_seconds_left: float) -> bool:
        """Before that step: where it is asked for, or repays, which is known once the first steps have been timed."""
        if self.compiled:
            return False
        vary, decides = self.order.lengths is not None, self.options.compile == "auto" and step == compiling.EAGER_STEPS
        return self.options.compile == "on" or (decides and compiling.repays(eager_seconds_left, lengths_vary=vary))

    def compile(self, step: int, emit: Emit) -> None:
        """On a trial pass that leaves no trace in the model; where it cannot be done, `auto` goes on without."""
        eager = self.loss
        self.loss, self.compiled = compiling.compiled(eager), True
        try:
            with compiling.untouched(self.model):
                self.learn(*self.batch(step * self.options.accumulation), 1)
        except FAILURES as problem:
            failure = explained(problem, instead="train.compile=off")
            if self.options.compile == "on":
                raise failure from problem
            emit(Note(f"{failure.message}; training goes on without.", level="warning"))
            self.loss, self.compiled = eager, False


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations but each block's input, and compute them again on the way back."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(model).__name__} cannot checkpoint gradients.", hint="Unset train.gradient_checkpointing."
        )
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
