"""`--dry-run`: what a compression would do to which matrices, from the checkpoint's headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.core.section import Section
from llmos_cli.core.view import Group, Lines, Table, View, short
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.models import pictures
from llmos_cli.models.blocks import blocks
from llmos_cli.models.load import skeleton
from llmos_cli.models.matrices import Matrix, left_alone, matrices
from llmos_cli.models.narrow import Width, configured, is_accepted
from llmos_cli.operations.compression.narrow import usable
from llmos_cli.operations.compression.ranking import allowed
from llmos_cli.operations.compression.share import Choice, share
from llmos_cli.operations.compression.shorten import check_reach
from llmos_cli.operations.compression.subject import check_dense
from llmos_cli.operations.compression.sweep import nothing_changed
from llmos_cli.options.verbs import PruneOptions, QuantizeOptions


@dataclass(frozen=True)
class CompressPlan:
    """`matrices`: name -> what would become of it; `left_alone`: module -> reason; `memory`: what would be in it at once, in words."""

    checkpoint: str
    method: str
    heal: int
    calibration_samples: int
    matrices: Mapping[str, str]
    left_alone: Mapping[str, str]
    memory: str

    def view(self) -> View:
        calibrated = (
            f"calibrated on {self.calibration_samples} training samples" if self.calibration_samples else "no data"
        )
        head = f"{self.method} of {short(self.checkpoint)}: {calibrated}, {self.heal} steps of healing"
        rows = [*self.matrices.items(), *((name, f"left alone: {reason}") for name, reason in self.left_alone.items())]
        return Group([Lines([head, self.memory]), Table(["weight", "would become"], rows, align="ll")])


def planned(
    checkpoint: Checkpoint,
    options: PruneOptions | QuantizeOptions,
    become: Callable[[Matrix], str],
    unfit: Callable[[Matrix], str],
    *,
    calibrated: bool,
    memory: str,
) -> CompressPlan:
    """`unfit`: why a matrix is left alone, "" where it is not."""
    check_dense(checkpoint)
    model = skeleton(checkpoint.path)
    found, ignored = matrices(model, options.ignore), left_alone(model, options.ignore)
    reasons = {name: unfit(matrix) for name, matrix in found.items()}
    if all(reasons.values()):
        raise nothing_changed([*reasons.values(), *ignored.values()])
    return CompressPlan(
        checkpoint.id,
        options.method,
        options.heal,
        options.calibration_samples if calibrated else 0,
        {name: f"left alone: {reasons[name]}" if reasons[name] else become(matrix) for name, matrix in found.items()},
        ignored,
        memory,
    )


def planned_cut(
    checkpoint: Checkpoint, module: ModuleType, own: Section, options: PruneOptions, memory: str
) -> CompressPlan:
    """What a structured method would cut: how much of it only calibration tells. UsageError where it could not."""
    check_dense(checkpoint)
    model = skeleton(checkpoint.path)
    found, refused = usable(model, [blank(model)], options.ignore) if hasattr(module, "rank") else ([], {})
    _check_reach(model, found, module, own, options.sparsity)
    become = {
        part.tensor: f"reads {width.name}: {width.units} now, then fewer"
        for width in found
        for group in width.groups
        for part in group.readers
    }
    stack = {} if found else {block.name: "goes, or stays as it is" for block in blocks(model)}
    return CompressPlan(
        checkpoint.id,
        options.method,
        options.heal,
        options.calibration_samples,
        become or stack,
        {**left_alone(model, options.ignore), **refused},
        memory,
    )


def _check_reach(
    model: PreTrainedModel, found: Sequence[Width], module: ModuleType, own: Section, sparsity: float
) -> None:
    """Where units go and blocks too, or channels of the residual stream, only trying tells."""
    if not hasattr(module, "rank"):
        check_reach(model, sparsity)
    elif found and not (hasattr(module, "depths") or getattr(own, "hidden", False)):
        free = {width: Choice(dict.fromkeys(allowed(width, module, own), 0.0)) for width in found}
        share(model, free, sparsity, lambda counts: is_accepted(configured(model.config, counts)))


def blank(model: PreTrainedModel) -> dict[str, Tensor]:
    """Some input that the model takes."""
    config = model.config
    if model.main_input_name == "pixel_values":
        return {"pixel_values": pictures.noise(config, 2)}
    return {"input_ids": torch.arange(16).view(2, 8) % config.vocab_size}
