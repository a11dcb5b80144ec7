"""SmoothQuant: W8A8 with outliers moved from the inputs into the weights, where they are spread thinner (Xiao et al. 2022, arXiv:2211.10438)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from llmos_cli.core.section import Section
from llmos_cli.methods.folding import folds, largest_inputs
from llmos_cli.methods.grid import Codes, Grid, nearest, widest
from llmos_cli.models.calibrate import Turn
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"norms"})
ACTIVATIONS: int | None = 8
BITS = 8
GROUP_SIZE = -1
SMALLEST = 1e-5


class Options(Section):
    strength: float = Field(0.5, ge=0, le=1)
    """How much of the difficulty moves into the weights: the paper's alpha, 0.5 for most models, 0.75 where outliers are many."""


def prepare(turn: Turn, grids: Mapping[str, Grid], options: Options) -> None:
    """Divide each channel by its scale where it is made, multiply the weights that read it."""
    pairs = [fold for fold in folds(turn) if all(f"{name}.weight" in grids for name in fold.readers)]
    largest = largest_inputs(turn) if pairs else {}
    for fold in pairs:
        fold.apply(scale(largest[next(iter(fold.readers))], fold.readers, options.strength))


def scale(largest_I: Tensor, readers: Mapping[str, nn.Linear], strength: float) -> Tensor:
    """Equation 4: max |X_j|^alpha / max |W_j|^(1 - alpha), 1 where a channel is dead on either side."""
    weight_I = torch.stack([reader.weight.detach().float().abs().amax(0) for reader in readers.values()]).amax(0)
    alive_I = (largest_I > SMALLEST) & (weight_I > SMALLEST)
    found_I = largest_I.clamp_min(SMALLEST) ** strength / weight_I.clamp_min(SMALLEST) ** (1 - strength)
    scaled_I: Tensor = torch.where(alive_I, found_I, 1)
    return scaled_I


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    return nearest(weight_OI, widest(weight_OI, grid), grid)
