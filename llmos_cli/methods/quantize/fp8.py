"""FP8: 8-bit floats (e4m3) for weights, scaled per output channel, and for inputs, scaled per token as they come (Micikevicius et al. 2022, arXiv:2209.05433)."""

from __future__ import annotations

from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, nearest, nearest_float, widest
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset()
ACTIVATIONS: int | None = 8
BITS = 8
GROUP_SIZE = -1
FLOATS = True


class Options(Section):
    pass


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    """What is no linear layer has int8 for its only format."""
    return nearest_float(weight_OI, grid) if grid.floats else nearest(weight_OI, widest(weight_OI, grid), grid)
