"""Healing after each way of compressing: which weights learn the parent's logits again, and which are held."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.events import Emit
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.frozen import FACTOR, PLACE, scales_free
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.heal import Healing, heal
from llmos_cli.operations.training.holding import Held


def heal_pruned(subject: Subject, healing: Healing, emit: Emit) -> None:
    """Learn the parent's logits with every zero of a matrix held: what was pruned just now, or in a parent that was cut since."""
    heal(subject.model, subject.parent(), subject.exam, healing, Held(zeros_held(subject.model)), emit=emit)


def zeros_held(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """Parameter name -> True where it may differ from zero, for the matrices that hold a zero: it was put there."""
    found = {id(matrix.parameter) for matrix in matrices(model).values() if bool((matrix.parameter == 0).any())}
    return {name: p != 0 for name, p in model.named_parameters() if id(p) in found}


def heal_quantized(subject: Subject, coded: Mapping[str, Coded], healing: Healing, emit: Emit) -> dict[str, Coded]:
    """Learn the parent's logits by scales, norms and biases."""
    kept = {id(parameter) for parameter in subject.model.parameters() if parameter.dim() > 1}
    names = {name for name, parameter in subject.model.named_parameters() if id(parameter) in kept}
    parts = {name: (entry.matrix, entry.codes, entry.grid) for name, entry in coded.items()}
    teacher = subject.parent()
    weights = _weights(subject, teacher, coded) if healing.options.codes else {}

    def trainable(name: str) -> bool:
        return name.endswith((FACTOR, PLACE)) or not (name in names or name.endswith(".original"))

    with scales_free(parts, weights) as learnt:
        heal(subject.model, teacher, subject.exam, healing, Held(trainable=trainable), emit=emit)
    return {name: Coded(entry.matrix, learnt[name], entry.grid) for name, entry in coded.items()}


def _weights(subject: Subject, teacher: PreTrainedModel, coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    """What the codes were chosen for, which are chosen anew as they learn."""
    dense = teacher if subject.source == subject.checkpoint.path else load(subject.source, device=device.pick())
    return {name: matrix.read() for name, matrix in matrices(dense).items() if name in coded}
