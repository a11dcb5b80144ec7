"""A cut in depth and width: some blocks go, units of the others make up the rest of the share, and of the numbers of blocks that are
tried the method chooses by what the model's answers then are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import ModuleType

from transformers import PreTrainedModel

from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.blocks import blocks
from llmos_cli.models.matrices import matches, matrices
from llmos_cli.models.shallow import depth_of, shortened
from llmos_cli.operations.compression.missing import least_missed
from llmos_cli.operations.compression.narrow import NEGLIGIBLE, Cut, size_of
from llmos_cli.operations.compression.probe import mean_divergence, said
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change
from llmos_cli.operations.compression.thin import narrower
from llmos_cli.tasks.base import Batch


def reshape(
    subject: Subject, module: ModuleType, own: Section, *, sparsity: float, ignore: Sequence[str], batches: Sequence[Batch],
    emit: Emit,
) -> Cut:  # fmt: skip
    """Leave a share `sparsity` of the model's parameters out, in whole blocks as far as the method says."""
    order = fitting(subject.model, missed(subject.model, batches, ignore, sparsity), sparsity)

    def cut(count: int, batches: Sequence[Batch]) -> Cut:
        return without(subject, module, own, order[:count], sparsity, ignore, batches, emit)

    tried = module.depths(len(order), own)
    return cut(_chosen(subject.model, module, own, tried, cut, batches, emit), batches)


def _chosen(
    model: PreTrainedModel, module: ModuleType, own: Section, tried: Sequence[int],
    cut: Callable[[int, Sequence[Batch]], Cut], batches: Sequence[Batch], emit: Emit,
) -> int:  # fmt: skip
    """How many blocks go. What was refitted to samples answers better on them than elsewhere, the more of it there is: so the shapes are
    compared on samples that they were not refitted to."""
    if len(tried) == 1:
        return tried[0]
    fitted, looked = apart(batches)
    whole = [said(model, batch) for batch in looked]
    kl: dict[int, float] = {}
    refused = ""
    for count in tried:
        try:
            shape = cut(count, fitted)
        except UsageError as problem:  # too little can be made narrower: the more blocks go, the less must be
            refused = refused or problem.message
            continue
        kl[count] = mean_divergence(whole, shape.model, looked)
        emit(Note(f"{', '.join(shape.told)}: KL {kl[count]:.3g} before healing"))
    if not kl:
        raise UsageError(refused, hint="lower --sparsity")
    found: int = module.chosen(kl, own)
    return found


def apart(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Three quarters of every batch's samples and the rest; of a single sample the same twice."""
    found: tuple[list[Batch], list[Batch]] = [], []
    for batch in batches:
        rows = len(next(iter(batch.values())))
        first = max(1, rows - max(1, rows // 4))
        found[0].append({name: value[:first] for name, value in batch.items()})
        found[1].append({name: value[min(first, rows - 1) :] for name, value in batch.items()})
    return found


def missed(model: PreTrainedModel, batches: Sequence[Batch], ignore: Sequence[str], sparsity: float) -> list[str]:
    """Blocks that may be among a share `sparsity` of the parameters, the first to go first; none where they are no stack."""
    stack, depth = blocks(model), depth_of(model.config)
    if depth is None or depth[1] != len(stack):
        return []
    spared = [block.name for block in stack if matches(block.name, ignore)]
    least = min(size_of(block.module) for block in stack)
    most = min(len(stack) - len(spared) - 1, int((sparsity + NEGLIGIBLE) * size_of(model) / least))
    return [name for name, _ in islice(least_missed(model, batches, spared), max(0, most))]


def fitting(model: PreTrainedModel, order: Sequence[str], sparsity: float) -> list[str]:
    """The blocks of `order` that are gone within a share `sparsity` of the parameters."""
    sizes = {block.name: size_of(block.module) for block in blocks(model)}
    budget = (sparsity + NEGLIGIBLE) * size_of(model)
    gone: list[str] = []
    for name in order:
        if sum(sizes[each] for each in (*gone, name)) <= budget:
            gone.append(name)
    return gone


def without(
    subject: Subject, module: ModuleType, own: Section, gone: Sequence[str], sparsity: float, ignore: Sequence[str],
    batches: Sequence[Batch], emit: Emit,
) -> Cut:  # fmt: skip
    """Without the blocks `gone`, and with what is left of the share cut out of the widths of the others."""
    names = [block.name for block in blocks(subject.model)]
    stays = [index for index, name in enumerate(names) if name not in gone]
    model = shortened(subject.model, stays) if gone else copy.deepcopy(subject.model)
    told = [f"{len(stays)} of {len(names)} blocks left"] if gone else []
    changes: Mapping[str, Change] = {name: Change({"gone": 1.0}) for name in gone}
    share = 1 - (1 - sparsity) * size_of(subject.model) / size_of(model)
    if share <= NEGLIGIBLE:
        return Cut(model, told, changes, {})
    here = replace(subject, model=model, matrices=matrices(model, ignore))
    cut = narrower(here, module, own, sparsity=share, ignore=ignore, batches=batches, emit=emit)
    return Cut(cut.model, [*told, *cut.told], {**changes, **cut.changes}, cut.left_alone)
