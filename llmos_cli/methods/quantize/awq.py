"""AWQ: channels with large inputs made larger in the weights, so that rounding harms them less, and smaller in the inputs (Lin et al. 2023, arXiv:2306.00978).

A channel's scale is the root mean square of its input to a power that is searched for each group of layers fed alike: the one whose
rounded weights answer with the least squared error on the calibration inputs. The scales go into what makes the inputs (a norm, the
linear layer before), wherever the block allows it (`methods/folding.py`); codes are then the nearest ones, on scales clipped where
the error weighed by the inputs is least.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.folding import Fold, folds
from llmos_cli.methods.grid import Codes, Grid, nearest, searched, widest
from llmos_cli.models.calibrate import Turn
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"norms"})
ACTIVATIONS: int | None = None
SMALLEST = 1e-4
"""The least size of a channel's input that counts, of the largest."""


class Options(Section):
    steps: int = Field(20, ge=1)
    """Powers between 0 (no scaling) and 1 that are tried."""


def prepare(turn: Turn, grids: Mapping[str, Grid], options: Options) -> None:
    """Fold the best scales of each group of layers into what feeds it."""
    pairs = [fold for fold in folds(turn) if all(f"{name}.weight" in grids for name in fold.readers)]
    statistics = turn.measure({"hessian"}) if pairs else {}
    for fold in pairs:
        name = f"{next(iter(fold.readers))}.weight"
        if name in statistics:
            fold.apply(best_scale(fold, statistics[name].hessian_II, grids, options.steps))


def best_scale(fold: Fold, hessian_II: Tensor, grids: Mapping[str, Grid], steps: int) -> Tensor:
    """[I]: of the powers tried the one of least error; a power of 0 is among them, so it is never worse than no scaling."""
    size_I = hessian_II.diagonal().sqrt()
    size_I = size_I.clamp_min(SMALLEST * size_I.max()) if size_I.any() else torch.ones_like(size_I)
    weights = {f"{name}.weight": reader.weight.detach().float() for name, reader in fold.readers.items()}
    best_I, least = torch.ones_like(size_I), torch.inf
    for step in range(steps + 1):
        scale_I = size_I ** (step / steps)
        scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
        error = sum(scaled_error(weight_OI, scale_I, hessian_II, grids[name]) for name, weight_OI in weights.items())
        if error < least:
            best_I, least = scale_I, error
    return best_I


def scaled_error(weight_OI: Tensor, scale_I: Tensor, hessian_II: Tensor, grid: Grid) -> float:
    """Squared error of the outputs over the calibration inputs when the weights are rounded times `scale_I`."""
    scaled_OI = weight_OI * scale_I
    change_OI = nearest(scaled_OI, widest(scaled_OI, grid), grid).dequantized() / scale_I - weight_OI
    return float((change_OI @ hessian_II).mul_(change_OI).sum())


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    """The nearest codes, of scales searched by the inputs' squares."""
    return nearest(weight_OI, searched(weight_OI, grid, statistics.square_I), grid)
