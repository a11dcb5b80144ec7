"""A structured cut: the units of a model are ranked, the cut is shared out among its widths, what reads them is refitted, and a
plain smaller model of the same architecture comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.core.section import Section
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit
from llmos_cli.models.channels import TOLERANCE, widths
from llmos_cli.models.matrices import Matrix, matches
from llmos_cli.models.narrow import Kept, Width, configured, is_accepted, narrowed
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.ranking import inputs_kept, ranked, reading_of
from llmos_cli.operations.compression.share import share
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, relative_error, sweep
from llmos_cli.tasks.base import Batch


@dataclass(frozen=True)
class Cut:
    """The smaller model, what became of each of its widths in words, and of its matrices."""

    model: PreTrainedModel
    told: Sequence[str]
    changes: Mapping[str, Change]
    left_alone: Mapping[str, str]


def narrow(
    subject: Subject, module: ModuleType, own: Section, *, sparsity: float, ignore: Sequence[str], batches: Sequence[Batch],
    emit: Emit,
) -> Cut:  # fmt: skip
    """Cut a share `sparsity` of the model's parameters out of it; `subject`'s model is left without what was read of them."""
    model = subject.model
    found, left_alone = usable(model, batches, ignore)
    readers = replace(subject, matrices=_readers(model, found))
    seen = ranked(readers, found, module, own, sparsity=sparsity, batches=batches, emit=emit)
    counts = share(model, seen.choices, sparsity, lambda counts: is_accepted(configured(model.config, counts)))
    kept: Kept = {
        width: {group: seen.rankings[group].kept(counts[width]) for group in width.groups}
        for width in found
        if counts[width] < width.units
    }
    changes = _refitted(readers, kept, module, own, batches, emit)
    smaller = narrowed(model, kept)
    _check(model, smaller, batches[0])
    told = [f"{width.name} {width.units} -> {counts[width]}" for width in kept]
    return Cut(smaller, told, changes, left_alone)


NEGLIGIBLE = 0.002
"""Share of the parameters that need not be looked for in widths any more."""


def size_of(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def usable(
    model: PreTrainedModel, batches: Sequence[Batch], ignore: Sequence[str]
) -> tuple[list[Width], dict[str, str]]:
    """Widths that may be cut; those that cannot, or may not, with the reason. UsageError where none may."""
    found, refused = widths(model, batches[0])
    for width in list(found):
        layers = {part.tensor.rpartition(".")[0] for group in width.groups for part in group.slices}
        if any(matches(layer, ignore) for layer in layers):
            found.remove(width)
            refused[width.name] = "ignored, as the config says"
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise UsageError(
            f"nothing of a {model.config.model_type} can be made narrower ({reasons or 'no width in its configuration is known'})",
            hint="the unstructured methods leave all shapes alone; `--method depth` leaves whole blocks out",
        )
    return found, refused


def _readers(model: nn.Module, found: Sequence[Width]) -> dict[str, Matrix]:
    """The matrices of all layers that read a group's units, output layers among them."""
    parts = [part for width in found for group in width.groups for part in group.readers]
    layers = {name: model.get_submodule(name) for name in (part.tensor.rpartition(".")[0] for part in parts)}
    return {
        f"{layer_name}.{name}": Matrix(f"{layer_name}.{name}", layer_name, layer, parameter.shape)
        for layer_name, layer in layers.items()
        for name, parameter in layer.named_parameters(recurse=False)
        if parameter.dim() > 1
    }


def _refitted(
    subject: Subject, kept: Kept, module: ModuleType, own: Section, batches: Sequence[Batch], emit: Emit
) -> dict[str, Change]:
    """Every matrix that read units which go answers without them as nearly as it can, on what the cut blocks before it give."""
    reading = reading_of(group for groups in kept.values() for group in groups)
    stays = {group: kept_N for groups in kept.values() for group, kept_N in groups.items()}

    def compress(matrix: Matrix, statistics: Statistics) -> Change:
        if matrix.name not in reading:
            return Change(skipped="it reads nothing that went")
        before_OI = matrix.read()
        kept_I = inputs_kept(matrix, reading[matrix.name], stays)
        after_OI: Tensor = module.refit(before_OI, kept_I.to(before_OI.device), statistics, own)
        matrix.write(after_OI.where(before_OI != 0, 0))  # what was pruned stays
        gone = float((~kept_I).float().mean())
        return Change({"gone": gone, "error": relative_error(before_OI, after_OI, statistics)})

    return sweep(subject, batches, compress, module.NEEDS, stage="prune", emit=emit)


@torch.no_grad()
def _check(deaf: PreTrainedModel, smaller: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    """The smaller model says what the whole one does once nothing reads the units that went."""
    few = {name: value[:2] for name, value in batch.items()}
    before, after = (model.eval()(**few).logits.float() for model in (deaf, smaller))
    difference, largest = float((before - after).abs().max()), float(before.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise LlmosError(
            f"cut out of its {smaller.config.model_type}, the smaller model's logits differ by {difference:.3g} "
            f"(largest {largest:.3g}): nothing was committed",
            hint="this is a defect of llmos: please report the model's config.json",
        )
