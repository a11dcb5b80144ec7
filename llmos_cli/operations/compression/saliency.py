"""Scores of single weights that gradients tell: looked at once, or followed while the model trains. The model is in memory as a whole.

Shapes: O outputs, I inputs of a matrix, S samples, N scored positions, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli import device
from llmos_cli.core.section import Section
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Progress
from llmos_cli.methods.patterns import Target, keep
from llmos_cli.models.matrices import Matrix
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.heal import Healing, heal
from llmos_cli.operations.training.holding import Held
from llmos_cli.operations.training.loss import Loss
from llmos_cli.options.verbs import HealOptions
from llmos_cli.tasks.base import Batch


def by_gradients(module: ModuleType) -> bool:
    """Whether a method scores weights by their gradients."""
    return hasattr(module, "score") or trains(module)


def trains(module: ModuleType) -> bool:
    """Whether it finds its mask while the model trains."""
    return hasattr(module, "moved")


def looked_at(
    subject: Subject, module: ModuleType, own: Section, batches: Sequence[Batch], emit: Emit
) -> dict[str, Tensor]:
    """Each matrix's scores; `batches` hold labels."""
    fisher = empirical_fisher(subject, batches, emit)
    return {name: module.score(matrix.read(), fisher[name], own) for name, matrix in subject.matrices.items()}


def empirical_fisher(subject: Subject, batches: Sequence[Batch], emit: Emit) -> dict[str, Tensor]:
    """[O, I] for each matrix: the mean over samples of the squared gradient of a sample's negative log-likelihood, in nats."""
    model, matrices = subject.model.eval(), subject.matrices
    parameters = [matrix.parameter for matrix in matrices.values()]
    squares = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    loss, samples = Loss(0.0, 0.0, 1.0), sum(len(batch["labels"]) for batch in batches)
    done = 0
    with _asking(parameters):
        for batch in batches:
            for one in _one_by_one(batch):
                found = torch.autograd.grad(loss(model, one, None), parameters, allow_unused=True)
                for square, gradient in zip(squares, found, strict=True):
                    if gradient is not None:
                        square.addcmul_(gradient, gradient, value=1 / samples)
                done += 1
            emit(Progress("look at gradients", done, samples, "sample", memory=device.memory_used()))
    return {name: _finite(matrix, square) for (name, matrix), square in zip(matrices.items(), squares, strict=True)}


def first_order(
    model: nn.Module, matrices: Mapping[str, Matrix], batches: Sequence[Batch], seed: int = 0
) -> dict[str, Tensor]:
    """[S, I] for each matrix: what a sample's negative log-likelihood would lose without an input, to first order: sum_o w_oi g_oi.

    The labels are drawn from what the model itself says, so that none are needed; `batches` have none.
    """
    parameters = [matrix.parameter for matrix in matrices.values()]
    weights = {name: matrix.read() for name, matrix in matrices.items()}
    moves: dict[str, list[Tensor]] = {name: [] for name in matrices}
    generator = torch.Generator().manual_seed(seed)
    with _asking(parameters):
        for batch in batches:
            for one in _one_by_one(batch):
                loss = _own_loss(model.eval()(**one).logits.float(), one.get("attention_mask"), generator)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                for (name, matrix), gradient in zip(matrices.items(), found, strict=True):
                    weight_OI = weights[name]
                    move_OI = torch.zeros_like(weight_OI) if gradient is None else weight_OI * matrix.flat(gradient)
                    moves[name].append(move_OI.sum(0))
    return {name: torch.stack(found) for name, found in moves.items()}


def _own_loss(logits: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Of classes drawn from the model's own softmax, summed over what is no padding."""
    logits_NC = logits.flatten(0, -2)
    if mask is not None and mask.shape == logits.shape[:-1]:
        logits_NC = logits_NC[mask.flatten().bool()]
    drawn_N = torch.multinomial(logits_NC.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits_NC, drawn_N.to(logits_NC.device), reduction="sum")


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    for row in range(len(next(iter(batch.values())))):
        yield {name: value[row : row + 1] for name, value in batch.items()}


@contextmanager
def _asking(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """The parameters ask for gradients; cuDNN, whose LSTMs have none in evaluation mode, stays out of it."""
    asked = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        for parameter, before in zip(parameters, asked, strict=True):
            parameter.requires_grad_(before)


def _finite(matrix: Matrix, square: Tensor) -> Tensor:
    if not torch.isfinite(square).all():
        raise LlmosError(
            f"the gradient of {matrix.name} is not finite",
            hint="evaluate the parent: its loss overflows on some sample",
        )
    return matrix.flat(square)


def followed(
    subject: Subject, module: ModuleType, own: Section, target: Target, options: HealOptions, seed: int, emit: Emit
) -> dict[str, Tensor]:
    """Each matrix's scores after the method's steps of training towards the parent's logits; the weights have moved with them."""
    moving = Moving(subject.matrices, module, own, target)
    steps = Healing(own.steps, options, seed)  # type: ignore[attr-defined]
    heal(subject.model, subject.parent(), subject.exam, steps, Held(by=moving), emit=emit, stage="train the mask")
    moving.let_go()
    return moving.ranked()


RENEWALS = 64
"""How often masks are chosen anew while they are learnt: each time all scores are sorted."""


class Moving:
    """Weights under masks that change as scores do: a masked weight keeps the value that it had, and comes back with it."""

    def __init__(self, matrices: Mapping[str, Matrix], module: ModuleType, own: Section, target: Target) -> None:
        self.matrices, self.module, self.own, self.target = matrices, module, own, target
        self.dense = {name: matrix.read() for name, matrix in matrices.items()}
        self.scores = {name: module.start(weight_OI, own) for name, weight_OI in self.dense.items()}
        self.masks = {name: torch.ones_like(weight_OI, dtype=torch.bool) for name, weight_OI in self.dense.items()}
        self.born = {name: weight_OI != 0 for name, weight_OI in self.dense.items()}
        self.renewed = 0

    def before_step(self) -> None:
        """The scores move by the gradients; what is masked feels none."""
        for name, matrix in self.matrices.items():
            gradient = matrix.parameter.grad
            if gradient is not None:
                gradient_OI = matrix.flat(gradient)
                self.scores[name] = self.module.moved(self.scores[name], self.dense[name], gradient_OI, self.own)
                gradient.copy_(matrix.shaped(gradient_OI * self.masks[name]))

    def after_step(self, progress: float) -> None:
        due = int(progress * RENEWALS)
        for name, matrix in self.matrices.items():
            self.dense[name] = torch.where(self.masks[name], matrix.read(), self.dense[name])
        if due > self.renewed:
            self.renewed = due
            self.masks = masks(self.ranked(), self.module, self.own, self.module.at(progress, self.target, self.own))
        for name, matrix in self.matrices.items():
            matrix.write(self.dense[name] * (self.masks[name] & self.born[name]))

    def ranked(self) -> dict[str, Tensor]:
        """The scores, of what was zero from the start below all others: it goes first."""
        return {name: score_OI.where(self.born[name], score_OI.min() - 1) for name, score_OI in self.scores.items()}

    def let_go(self) -> None:
        """The weights as they were learnt, without masks: who prunes by the final scores finds the same ones masked."""
        for name, matrix in self.matrices.items():
            matrix.write(self.dense[name] * self.born[name])


def masks(
    scores: Mapping[str, Tensor], module: ModuleType, own: Section, target: Target,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """True where a weight stays, in `shares` of each matrix or as the method shares out; a matrix whose inputs do not divide into the
    pattern's groups keeps all."""
    fitting = {name: score_OI for name, score_OI in scores.items() if target.fits(score_OI.shape[1])}
    shares = shares or module.allot(fitting, target, own)
    kept = {name: torch.ones_like(score_OI, dtype=torch.bool) for name, score_OI in scores.items()}
    for name, score_OI in fitting.items():
        kept[name] = keep(score_OI, replace(target, sparsity=shares.get(name, target.sparsity)), per="layer")
    return kept
