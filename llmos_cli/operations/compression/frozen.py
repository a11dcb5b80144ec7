"""Quantized layers while they heal: each scale is multiplied by a factor that learns; codes stand still, or each weight has a place
between codes that learns too.

A factor starts at 1 and a place is counted in codes, so one learning rate moves every scale, and every weight, by the same share of a
scale, however large that is. A weight takes the code nearest to its place, and the gradient passes that rounding straight through.
Shapes: O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from llmos_cli.methods.grid import Codes, Grid, Scales, usable
from llmos_cli.models.matrices import Matrix

FACTOR, PLACE = "factor_OG", "place_OI"
MARGIN = 0.45
"""How far from its code a place starts at most, towards the weight that the code stands for: the next code is half a step away."""


class Scaled(nn.Module):
    """The parametrization of one weight: step x scale x factor. `weight_OI`, where codes may move, is the weight that was quantized."""

    steps_OI: Tensor
    scale_OG: Tensor
    keep_OI: Tensor

    def __init__(self, codes: Codes, matrix: Matrix, grid: Grid, weight_OI: Tensor | None = None) -> None:
        super().__init__()
        self.matrix, self.grid, self.zero_OG, self.kind = matrix, grid, codes.zero_OG, codes.codes_OI.dtype
        self.register_buffer("steps_OI", codes.steps(), persistent=False)
        self.register_buffer("scale_OG", codes.scale_OG.float(), persistent=False)
        self.factor_OG = nn.Parameter(torch.ones_like(codes.scale_OG, dtype=torch.float32))
        self.place_OI: nn.Parameter | None = None
        if weight_OI is not None:
            off_OI = weight_OI / self._wide(self.scale_OG) - self.steps_OI
            self.register_buffer("keep_OI", weight_OI != 0, persistent=False)
            # Further off than the code after the next: the weight was scaled since, by a method that folds, and says nothing.
            off_OI = off_OI.where(off_OI.abs() < 1.5, 0).clamp_(-MARGIN, MARGIN)
            self.place_OI = nn.Parameter(self.steps_OI + off_OI)

    def forward(self, stored: Tensor) -> Tensor:
        return self.matrix.shaped(self.steps() * self._wide(self.scale_OG * self.factor_OG))

    def steps(self) -> Tensor:
        if self.place_OI is None:
            return self.steps_OI
        low, high = self.grid.ends(None if self.zero_OG is None else self._wide(self.zero_OG))
        steps_OI: Tensor = (self.place_OI + (self.place_OI.round() - self.place_OI).detach()).clamp(low, high)
        return steps_OI * self.keep_OI

    def learnt(self) -> Codes:
        """The codes with the scales as they will be stored."""
        with torch.no_grad():
            scale_OG = usable(self.scale_OG * self.factor_OG, self.grid)
            return Codes.of_steps(self.steps(), Scales(scale_OG, self.zero_OG), self.kind)

    def _wide(self, value_OG: Tensor) -> Tensor:
        return value_OG.repeat_interleave(self.grid.group, 1)


@contextmanager
def scales_free(
    codes: Mapping[str, tuple[Matrix, Codes, Grid]], weights: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Codes]]:
    """While open, the weights are made of their scales; afterwards the dict holds the learnt codes and the weights are theirs.

    Codes may move where `weights` holds what they stand for. An LSTM keeps its scales: torch reads its weights past any
    parametrization.
    """
    learnt = {name: found for name, (_, found, _) in codes.items()}
    healing = {name: entry for name, entry in codes.items() if not isinstance(entry[0].layer, nn.LSTM)}
    weights = weights or {}
    scaled = {name: Scaled(found, matrix, grid, weights.get(name)) for name, (matrix, found, grid) in healing.items()}
    for name, (matrix, _, _) in healing.items():
        parametrize.register_parametrization(matrix.layer, "weight", scaled[name], unsafe=True)
    try:
        yield learnt
    finally:
        for name, (matrix, _, _) in healing.items():
            learnt[name] = scaled[name].learnt()
            parametrize.remove_parametrizations(matrix.layer, "weight", leave_parametrized=False)
            matrix.write(learnt[name].dequantized())
