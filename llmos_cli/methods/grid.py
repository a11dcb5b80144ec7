"""The values a quantized weight can take: code times scale, symmetric around zero, one scale for each group of inputs.

Shapes: O outputs, I inputs, g inputs in a group, G = I / g groups, C candidates. Codes are whole numbers in [-2^(bits-1), 2^(bits-1) - 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLIPS = tuple(1.0 - 0.025 * step for step in range(25))
"""Shares of a group's largest weight that the grid's end is tried at."""


@dataclass(frozen=True)
class Grid:
    """`group` inputs share a scale, kept as `dtype` in the file: codes are chosen for the scale as it will be read back."""

    bits: int
    group: int
    dtype: torch.dtype = torch.float32

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Codes:
    """`codes_OI` int8; `scale_OG` as it is stored. A scale may be negative: its group then reaches one step further up than down."""

    codes_OI: Tensor
    scale_OG: Tensor

    def dequantized(self) -> Tensor:
        """[O, I] in fp32, in which readers multiply too."""
        codes_OGg = self.codes_OI.unflatten(1, (self.scale_OG.shape[1], -1)).float()
        values_OI: Tensor = (codes_OGg * self.scale_OG[:, :, None].float()).flatten(1)
        return values_OI


@dataclass(frozen=True)
class Rounding:
    """A matrix [O, I] in fp32, the codes chosen for it and their grid."""

    weight_OI: Tensor
    codes: Codes
    grid: Grid


def usable_group(inputs: int, group: int) -> int:
    """The largest divisor of `inputs` up to `group`; `inputs` itself (one scale per output channel) for -1 or above it."""
    if group < 1 or group >= inputs:
        return inputs
    return next(size for size in range(group, 0, -1) if inputs % size == 0)


def absmax(weight_OI: Tensor, grid: Grid) -> Tensor:
    """scale_OG that places each group's largest weight half a step inside the grid's end (as compressed-tensors does)."""
    largest_OG = weight_OI.unflatten(1, (-1, grid.group)).abs().amax(2)
    return usable(largest_OG / ((grid.high - grid.low) / 2), grid)


def searched(weight_OI: Tensor, grid: Grid, importance_I: Tensor) -> Tensor:
    """scale_OG of the least error, each column's square weighed by `importance_I`, over clips and both signs.

    A negative scale puts the extra code at the positive end, which is where the largest weight may be (as auto-round's
    full-range grids do): at 3 bits that is an eighth of the range.
    """
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    weighed_1Gg = importance_I.unflatten(0, (-1, grid.group))[None]
    largest_OG = weight_OGg.abs().amax(2)
    best_OG, least_OG = absmax(weight_OI, grid), torch.full_like(largest_OG, torch.inf)
    widest_OG = largest_OG / -grid.low
    candidates = [absmax(weight_OI, grid)]
    candidates += [usable(widest_OG * (sign * clip), grid) for clip in CLIPS for sign in (1, -1)]
    for scale_OG in candidates:
        wide_OG1 = scale_OG.to(weight_OI.dtype)[:, :, None]
        rounded_OGg = (weight_OGg / wide_OG1).round_().clamp_(grid.low, grid.high) * wide_OG1
        error_OG = ((rounded_OGg - weight_OGg).square_() * weighed_1Gg).sum(2)
        better_OG = error_OG < least_OG
        least_OG, best_OG = torch.where(better_OG, error_OG, least_OG), torch.where(better_OG, scale_OG, best_OG)
    return best_OG


def usable(scale_OG: Tensor, grid: Grid) -> Tensor:
    """The scale as the file holds it, 1 where its group is all zero or so small that the scale vanishes."""
    stored_OG = scale_OG.to(grid.dtype)
    return torch.where((stored_OG == 0) | ~torch.isfinite(stored_OG.float().reciprocal()), 1, stored_OG)


def nearest(weight_OI: Tensor, scale_OG: Tensor, grid: Grid) -> Codes:
    """Round to nearest."""
    steps_OGg = weight_OI.unflatten(1, (scale_OG.shape[1], -1)) / scale_OG.to(weight_OI.dtype)[:, :, None]
    codes_OI = steps_OGg.round().clamp(grid.low, grid.high).flatten(1).to(torch.int8)
    return Codes(codes_OI, scale_OG)
