"""How one matrix is pruned: by the statistics of its inputs, or by scores that gradients tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType

from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.events import Emit
from llmos_cli.methods.patterns import Target
from llmos_cli.models.lazily import Lazily
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.saliency import followed, looked_at, masks, trains
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, Compress, relative_error
from llmos_cli.options.verbs import PruneConfig
from llmos_cli.tasks.base import Batch


def zeroing(
    subject: Subject, module: ModuleType, own: Section, target: Target, shares: Mapping[str, float] | None = None
) -> Compress:
    """By a method that looks at one matrix: `shares` of each are zeroed; without, a method that divides the zeros among layers does so
    here, knowing them all."""
    sparsities: Mapping[str, float] = shares or {}
    if shares is None and hasattr(module, "allot"):
        fitting = {name: name for name, matrix in subject.matrices.items() if target.fits(matrix.inputs)}
        sparsities = module.allot(Lazily(fitting, partial(original, subject)), target, own)

    def after(matrix: Matrix, before_OI: Tensor, statistics: Statistics) -> Tensor:
        here = replace(target, sparsity=sparsities.get(matrix.name, target.sparsity))
        pruned_OI: Tensor = module.prune(before_OI, statistics, here, own)
        return pruned_OI

    return _pruning(after, target)


def scored(
    subject: Subject, module: ModuleType, own: Section, target: Target, shares: Mapping[str, float] | None,
    batches: Sequence[Batch], config: PruneConfig, emit: Emit,
) -> Compress:  # fmt: skip
    """By gradients; a method that trains has moved the weights by then."""
    scores = (
        followed(subject, module, own, target, config.heal, config.seed, emit)
        if trains(module)
        else looked_at(subject, module, own, batches, emit)
    )
    found = masks(scores, module, own, target, shares)
    return _pruning(lambda matrix, before_OI, _: before_OI.where(found[matrix.name], 0), target)


ENOUGH = "it has as many zeros already"


def _pruning(after: Callable[[Matrix, Tensor, Statistics], Tensor], target: Target) -> Compress:
    """`after`: what a matrix [O, I] becomes."""

    def compress(matrix: Matrix, statistics: Statistics) -> Change:
        if not target.fits(matrix.inputs):
            return Change(skipped=misfit(matrix, target))
        before_OI = matrix.read()
        after_OI = after(matrix, before_OI, statistics)
        if after_OI.equal(before_OI):
            return Change(skipped=ENOUGH)
        matrix.write(after_OI)
        zeros = float((after_OI == 0).float().mean())
        return Change({"sparsity": zeros, "error": relative_error(before_OI, after_OI, statistics)})

    return compress


def misfit(matrix: Matrix, target: Target) -> str:
    return f"its {matrix.inputs} inputs do not divide into groups of {target.m}"


def original(subject: Subject, name: str) -> Tensor:
    """A matrix [O, I] as the parent has it, whether its block is in memory or not."""
    matrix = subject.matrices[name]
    return matrix.flat(subject.shelf.read(name)) if subject.shelf else matrix.read()
