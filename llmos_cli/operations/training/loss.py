"""The training loss: cross-entropy to the labels, KL to a teacher, or both.

Written over all positions with the unscored ones masked, unlike evaluation, which picks the scored ones out: shapes that do
not depend on the data are what a compiled step needs.

Shapes: P positions (samples, or samples x length), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import UNSCORED, Batch
from llmos_cli.tasks.scoring import forward


@dataclass(frozen=True)
class Loss:
    """`teacher_weight`: the share of KL to the teacher, 0 where there is none; the rest is cross-entropy."""

    label_smoothing: float
    teacher_weight: float
    temperature: float

    def __call__(self, model: nn.Module, batch: Batch, teacher_logits: Tensor | None) -> Tensor:
        """The loss added up over the scored positions, in nats.

        It is divided by their number once that is known over all forward passes of a step, so that accumulating equals one
        larger batch.
        """
        logits_PC = _positions(forward(model, batch))
        labels_P = batch["labels"].flatten()
        if teacher_logits is None:
            return self._cross_entropy(logits_PC, labels_P)
        loss = self.teacher_weight * self._kl(_positions(teacher_logits), logits_PC, labels_P)
        if self.teacher_weight < 1:
            loss = loss + (1 - self.teacher_weight) * self._cross_entropy(logits_PC, labels_P)
        return loss

    def _cross_entropy(self, logits_PC: Tensor, labels_P: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_PC, labels_P, ignore_index=UNSCORED, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def _kl(self, teacher_PC: Tensor, student_PC: Tensor, labels_P: Tensor) -> Tensor:
        """KL(teacher || student) times temperature squared, which keeps the gradient's size (Hinton et al. 2015, arXiv:1503.02531)."""
        teacher_PC = F.log_softmax(teacher_PC / self.temperature, dim=-1)
        student_PC = F.log_softmax(student_PC / self.temperature, dim=-1)
        kl_P = F.kl_div(student_PC, teacher_PC, log_target=True, reduction="none").sum(-1)
        return (kl_P * (labels_P != UNSCORED)).sum() * self.temperature**2


def of(options: TrainOptions, *, taught: bool) -> Loss:
    """Plain numbers, read once: a compiler cannot look into a config section."""
    if not taught:
        return Loss(options.label_smoothing, 0.0, 1.0)
    return Loss(options.label_smoothing, options.teacher_weight, options.temperature)


def scored(batch: Batch) -> int:
    """How many positions of a batch count."""
    return int((batch["labels"] != UNSCORED).sum())


@torch.no_grad()
def teach(teacher: nn.Module, batch: Batch) -> Tensor:
    """The teacher's logits, outside the gradient."""
    return forward(teacher, batch)


def _positions(logits: Tensor) -> Tensor:
    return logits.flatten(0, -2).float()
