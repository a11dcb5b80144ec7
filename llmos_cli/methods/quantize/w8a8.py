"""W8A8: 8-bit weights per output channel and 8-bit inputs per token, scaled as they come (Dettmers et al. 2022, arXiv:2208.07339)."""

from __future__ import annotations

from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, nearest, widest
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset()
ACTIVATIONS: int | None = 8
BITS = 8
GROUP_SIZE = -1


class Options(Section):
    pass


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    return nearest(weight_OI, widest(weight_OI, grid), grid)
