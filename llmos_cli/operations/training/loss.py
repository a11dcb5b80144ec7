"""The training loss: cross-entropy to the labels, KL to a teacher, or both; on request the distance to its hidden states too.

Written over all positions with the unscored ones masked, unlike evaluation, which picks the scored ones out: shapes that do
not depend on the data are what a compiled step needs.

Shapes: P positions (samples, or samples x length), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli.operations.training.hidden import Matching
from llmos_cli.operations.training.top import Top, kl_to_top, top_of
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import UNSCORED, Batch
from llmos_cli.tasks.scoring import outputs


class Taught(NamedTuple):
    """What a teacher says of a batch: its logits, or the top of its softmax; the hidden states of the layers asked for."""

    logits: Tensor | None = None
    top: Top | None = None
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Loss:
    """`teacher_weight`: the share of KL to the teacher, 0 where there is none; the rest is cross-entropy. `hidden_weight`: of the
    hidden states' distance, which comes on top; `matching` says which layers."""

    label_smoothing: float
    teacher_weight: float
    temperature: float
    hidden_weight: float = 0.0
    matching: Matching | None = None

    def __call__(self, model: nn.Module, batch: Batch, taught: Taught | None) -> Tensor:
        """The loss added up over the scored positions, in nats.

        It is divided by their number once that is known over all forward passes of a step, so that accumulating equals one
        larger batch.
        """
        asked = {"output_hidden_states": True} if self.matching is not None else {}
        found = outputs(model, batch, **asked)
        logits_PC, labels_P = _positions(found.logits), batch["labels"].flatten()
        if taught is None:
            return self._cross_entropy(logits_PC, labels_P)
        loss = self.teacher_weight * self._kl(taught, logits_PC, labels_P)
        if self.teacher_weight < 1:
            loss = loss + (1 - self.teacher_weight) * self._cross_entropy(logits_PC, labels_P)
        if self.matching is not None:
            loss = loss + self.hidden_weight * self.matching(found.hidden_states, taught.hidden, batch)
        return loss

    def _cross_entropy(self, logits_PC: Tensor, labels_P: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_PC, labels_P, ignore_index=UNSCORED, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def _kl(self, taught: Taught, student_PC: Tensor, labels_P: Tensor) -> Tensor:
        """KL(teacher || student) times temperature squared, which keeps the gradient's size (Hinton et al. 2015, arXiv:1503.02531)."""
        student_PC = F.log_softmax(student_PC / self.temperature, dim=-1)
        if taught.top is not None:
            top = taught.top
            kl_P = kl_to_top(Top(top.logp.flatten(0, -2), top.ids.flatten(0, -2), top.rest.flatten()), student_PC)
        else:
            assert taught.logits is not None
            teacher_PC = F.log_softmax(_positions(taught.logits) / self.temperature, dim=-1)
            kl_P = F.kl_div(student_PC, teacher_PC, log_target=True, reduction="none").sum(-1)
        return (kl_P * (labels_P != UNSCORED)).sum() * self.temperature**2


def of(options: TrainOptions, *, taught: bool, matching: Matching | None = None) -> Loss:
    """Plain numbers, read once: a compiler cannot look into a config section."""
    if not taught:
        return Loss(options.label_smoothing, 0.0, 1.0)
    return Loss(options.label_smoothing, options.teacher_weight, options.temperature, options.hidden_weight, matching)


def scored(batch: Batch) -> int:
    """How many positions of a batch count."""
    return int((batch["labels"] != UNSCORED).sum())


@torch.no_grad()
def teach(teacher: nn.Module, batch: Batch, options: TrainOptions, matching: Matching | None = None) -> Taught:
    """What the teacher says now, outside the gradient."""
    asked = {"output_hidden_states": True} if matching is not None else {}
    found = outputs(teacher, batch, **asked)
    hidden = tuple(found.hidden_states[layer] for layer in matching.taught) if matching is not None else ()
    if options.teacher_top is not None:
        return Taught(top=top_of(found.logits, options.teacher_top, options.temperature), hidden=hidden)
    return Taught(logits=found.logits, hidden=hidden)


def _positions(logits: Tensor) -> Tensor:
    return logits.flatten(0, -2).float()
