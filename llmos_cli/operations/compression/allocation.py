"""Sparsity by sensitivity: blocks whose weights matter more unevenly keep more of them (OWL, Yin et al. 2024, arXiv:2310.05175)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from llmos_cli.events import Emit
from llmos_cli.methods.patterns import Target
from llmos_cli.models.blocks import shard_of
from llmos_cli.models.calibrate import Keeper
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.shelf import Shelf
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change, sweep
from llmos_cli.tasks.base import Batch

OUTLIER = 5.0
"""Times the mean score of its matrix from which a weight is an outlier (M of the paper)."""
SPREAD = 0.08
"""How far a block's sparsity may be from the others' mean (lambda of the paper)."""


def owl(subject: Subject, batches: Sequence[Batch], target: Target, emit: Emit) -> dict[str, float]:
    """Each matrix's sparsity by its name: alike within a block, over all weights together `target.sparsity`."""
    outliers: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def look(matrix: Matrix, statistics: Statistics) -> Change:
        score_OI = matrix.read().abs() * statistics.norm_I
        place = _place(matrix)
        outliers[place] = outliers.get(place, 0.0) + float((score_OI > OUTLIER * score_OI.mean()).sum())
        sizes[place] = sizes.get(place, 0) + score_OI.numel()
        return Change()

    sweep(subject, batches, look, {"norms"}, keeper=_Looking(subject.shelf), stage="look for outliers", emit=emit)
    shares = spread({place: outliers[place] / sizes[place] for place in sizes}, sizes, target.sparsity)
    return {name: shares[_place(matrix)] for name, matrix in subject.matrices.items() if _place(matrix) in shares}


def _place(matrix: Matrix) -> str:
    return shard_of(matrix.name) or matrix.layer_name


class _Looking(Keeper):
    """Brings blocks into memory and keeps nothing."""

    def __init__(self, shelf: Shelf | None) -> None:
        self.shelf = shelf

    def held(self, index: int) -> AbstractContextManager[None]:
        return self.shelf.held(index) if self.shelf else nullcontext()


def spread(ratios: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Sparsities that fall with the share of outliers, `sparsity` on the average of all weights, and as far apart as `SPREAD`
    allows: less where one of them would leave [0, 1)."""
    ratio_B = torch.tensor(list(ratios.values()), dtype=torch.float64)
    size_B = torch.tensor([sizes[name] for name in ratios], dtype=torch.float64)
    width = float(ratio_B.max() - ratio_B.min())
    if width == 0:
        return dict.fromkeys(ratios, sparsity)
    scaled_B = 2 * (ratio_B - ratio_B.min()) / width
    scaled_B -= (scaled_B * size_B).sum() / size_B.sum()
    room = min(SPREAD, sparsity / float(scaled_B.max()), (1 - sparsity) / float(-scaled_B.min()))
    return dict(zip(ratios, (sparsity - room * scaled_B).tolist(), strict=True))
