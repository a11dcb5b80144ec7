"""RTN: each weight to the nearest code of its group's scale; needs no data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, nearest, searched, widest
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset()
ACTIVATIONS: int | None = None


class Options(Section):
    scale: Literal["absmax", "mse"] = "absmax"
    """`absmax`: the grid reaches over the group's whole range; `mse`: as far as makes the squared error least."""


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    if options.scale == "absmax":
        return nearest(weight_OI, widest(weight_OI, grid), grid)
    return nearest(weight_OI, searched(weight_OI, grid, torch.ones_like(weight_OI[0])), grid)
