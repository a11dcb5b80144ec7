"""A structured cut: the units of a model are ranked, the cut is shared out among its widths, what reads them is refitted, and a
plain smaller model of the same architecture comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.core.section import Section
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit
from llmos_cli.methods.structure import Ranking, Reader
from llmos_cli.models.blocks import blocks, shard_of
from llmos_cli.models.calibrate import Statistics
from llmos_cli.models.channels import TOLERANCE, widths
from llmos_cli.models.matrices import Matrix, matches
from llmos_cli.models.narrow import Group, Kept, Slice, Width, configured, is_accepted, narrowed
from llmos_cli.operations.compression.share import Choice, share
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, relative_error, sweep
from llmos_cli.tasks.base import Batch

PRUNED = 0.05
"""Share of zeros from which a matrix counts as pruned."""


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
    found, left_alone = _usable(model, batches, ignore)
    readers = replace(subject, matrices=_readers(model, found))
    ranked = _ranked(readers, found, module, own, batches, emit)
    choices = {width: _choice(width, ranked, module, own) for width in found}
    counts = share(model, choices, sparsity, lambda counts: is_accepted(configured(model.config, counts)))
    kept: Kept = {
        width: {group: ranked[group].ranking.kept(counts[width]) for group in width.groups}
        for width in found
        if counts[width] < width.units
    }
    changes = _refitted(readers, kept, module, own, batches, emit)
    smaller = narrowed(model, kept)
    _check(model, smaller, batches[0])
    told = [f"{width.name} {width.units} -> {counts[width]}" for width in kept]
    return Cut(smaller, told, changes, left_alone)


def _usable(
    model: PreTrainedModel, batches: Sequence[Batch], ignore: Sequence[str]
) -> tuple[list[Width], dict[str, str]]:
    """Widths that may be cut; those that cannot, or may not, with the reason."""
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


@dataclass(frozen=True)
class Ranked:
    """A group's ranking, and the squared size, summed over the same rows, of what its readers' outputs are added to."""

    ranking: Ranking
    whole: float


def _ranked(
    subject: Subject, found: Sequence[Width], module: ModuleType, own: Section, batches: Sequence[Batch], emit: Emit
) -> dict[Group, Ranked]:
    """Every group's units in the order in which they can be spared, from the whole model's activations."""
    streams = _streams(subject.model, batches)
    reading = _reading(group for width in found for group in width.groups)
    seen: dict[Group, list[tuple[Reader, float]]] = {}
    ranked: dict[Group, Ranked] = {}

    def look(matrix: Matrix, statistics: Statistics) -> Change:
        weight_OI = matrix.read()
        whole = streams.get(shard_of(matrix.name) or "", 0.0) * statistics.count
        whole = whole or float((weight_OI @ statistics.hessian_II * weight_OI).sum())
        for group, part in reading.get(matrix.name, ()):
            reader = Reader(weight_OI, statistics.hessian_II, columns(part, matrix))
            seen.setdefault(group, []).append((reader, whole))
            if len(seen[group]) == len(group.readers):
                all_readers = seen.pop(group)
                ranking = module.rank([reader for reader, _ in all_readers], own)
                ranked[group] = Ranked(ranking, sum(whole for _, whole in all_readers))
        return Change()

    sweep(subject, batches, look, {"hessian"}, stage="rank", emit=emit)
    for group in (group for width in found for group in width.groups if group not in ranked):
        raise LlmosError(f"no calibration input reached what reads {group.name}", hint="use other calibration data")
    return ranked


def _reading(groups: Iterable[Group]) -> dict[str, list[tuple[Group, Slice]]]:
    """Who reads what, by the matrix that reads."""
    reading: dict[str, list[tuple[Group, Slice]]] = {}
    for group in groups:
        for part in group.readers:
            reading.setdefault(part.tensor, []).append((group, part))
    return reading


def columns(part: Slice, matrix: Matrix) -> Tensor:
    """[N, R] inputs of the matrix that are each unit: of a kernel, a channel is height x width of them."""
    if not isinstance(matrix.layer, nn.Conv2d):
        return part.index_NR
    each = matrix.inputs // matrix.parameter.shape[1]
    return (part.index_NR[:, :, None] * each + torch.arange(each)).flatten(1)


def _streams(model: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, float]:
    """The squared size of each block's output at a typical position: a few positions are a thousand times the others' size."""
    sizes: dict[str, float] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden_BLD = output[0] if isinstance(output, tuple) else output
            if isinstance(hidden_BLD, Tensor) and hidden_BLD.dim() == 3:
                sizes[name] = float(hidden_BLD.float().square().sum(-1).median())

        return hook

    hooks = [block.module.register_forward_hook(record(block.name)) for block in blocks(model)]
    try:
        with torch.no_grad():
            model(**batches[0])
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _choice(width: Width, ranked: Mapping[Group, Ranked], module: ModuleType, own: Section) -> Choice:
    """What each count of the width costs. Heads go whole, of the rest the method says how many may stay."""
    counts = range(1, width.units + 1) if width.head_size is not None else module.counts(width.units, own)

    def cost(count: int) -> float:
        errors = ((ranked[group].ranking.cost_N1[width.units - count], ranked[group].whole) for group in width.groups)
        return sum(float(error) / whole for error, whole in errors if whole > 0)

    return Choice({count: cost(count) for count in counts})


def _refitted(
    subject: Subject, kept: Kept, module: ModuleType, own: Section, batches: Sequence[Batch], emit: Emit
) -> dict[str, Change]:
    """Every matrix that read units which go answers without them as nearly as it can, on what the cut blocks before it give."""
    reading = _reading(group for groups in kept.values() for group in groups)
    stays = {group: kept_N for groups in kept.values() for group, kept_N in groups.items()}

    def compress(matrix: Matrix, statistics: Statistics) -> Change:
        if matrix.name not in reading:
            return Change(skipped="it reads nothing that went")
        before_OI = matrix.read()
        kept_I = torch.ones(matrix.inputs, dtype=torch.bool)
        for group, part in reading[matrix.name]:
            kept_I[columns(part, matrix)[~stays[group]].flatten()] = False
        after_OI: Tensor = module.refit(before_OI, kept_I.to(before_OI.device), statistics, own)
        if was_pruned(before_OI):
            after_OI = after_OI.where(before_OI != 0, 0)
        matrix.write(after_OI)
        gone = float((~kept_I).float().mean())
        return Change({"gone": gone, "error": relative_error(before_OI, after_OI, statistics)})

    return sweep(subject, batches, compress, module.NEEDS, stage="prune", emit=emit)


def was_pruned(weight: Tensor) -> bool:
    """Whether a matrix has so many zeros that they were put there, and must stay."""
    return float((weight == 0).float().mean()) > PRUNED


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
