"""Quantized layers while they heal: codes stand still, each scale is multiplied by a factor that learns.

A factor starts at 1, so one learning rate moves every scale by the same share of its size, however large that is.
Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llmos_cli.methods.grid import Codes, Grid, usable
from llmos_cli.models.matrices import Matrix

FACTOR = "factor_OG"


class Scaled(nn.Module):
    """The parametrization of one weight: code x scale x factor."""

    codes_OI: Tensor
    scale_OG: Tensor

    def __init__(self, codes: Codes, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_buffer("codes_OI", codes.codes_OI, persistent=False)
        self.register_buffer("scale_OG", codes.scale_OG.float(), persistent=False)
        self.factor_OG = nn.Parameter(torch.ones_like(codes.scale_OG, dtype=torch.float32))

    def forward(self, stored: Tensor) -> Tensor:
        return self.matrix.shaped(Codes(self.codes_OI, self.scale_OG * self.factor_OG).dequantized())

    def learnt(self, grid: Grid) -> Codes:
        """The codes with the scales as they will be stored."""
        return Codes(self.codes_OI, usable((self.scale_OG * self.factor_OG).detach(), grid))


@contextmanager
def scales_free(codes: Mapping[str, tuple[Matrix, Codes, Grid]]) -> Iterator[dict[str, Codes]]:
    """While open, the weights are made of their scales; afterwards the dict holds the learnt codes and the weights are theirs.

    An LSTM keeps its scales: torch reads its weights past any parametrization.
    """
    learnt = {name: found for name, (_, found, _) in codes.items()}
    healing = {name: entry for name, entry in codes.items() if not isinstance(entry[0].layer, nn.LSTM)}
    scaled = {name: Scaled(found, matrix) for name, (matrix, found, _) in healing.items()}
    for name, (matrix, _, _) in healing.items():
        parametrize.register_parametrization(matrix.layer, "weight", scaled[name], unsafe=True)
    try:
        yield learnt
    finally:
        for name, (matrix, _, grid) in healing.items():
            learnt[name] = scaled[name].learnt(grid)
            parametrize.remove_parametrizations(matrix.layer, "weight", leave_parametrized=False)
            matrix.write(learnt[name].dequantized())
