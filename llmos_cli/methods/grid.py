"""The values a quantized weight can take: (code - zero) times scale, one scale for each group of inputs, one zero where the grid
is asymmetric; else the zero is 0.

Shapes: O outputs, I inputs, g inputs in a group, G = I / g groups. Codes and zeros are whole numbers in [-2^(bits-1), 2^(bits-1) - 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmos_cli.models import fp8
from llmos_cli.models.kernels import rounding as kernels

CLIPS = tuple(1.0 - 0.05 * step for step in range(13))
"""Shares of a group's range that the grid's end is tried at."""
CACHED = 1 << 16
"""Weights whose scales torch searches at once: few enough for a processor's cache, since each is looked at dozens of times."""
MANY = 1 << 22
"""Of those whose scales our own kernel searches: so that the scales tried stay a small part of memory."""


@dataclass(frozen=True)
class Grid:
    """`group` inputs share a scale, kept as `dtype` in the file: codes are chosen for the scale as it will be read back."""

    bits: int
    group: int
    dtype: torch.dtype = torch.float32
    symmetric: bool = True
    floats: bool = False
    """Codes are 8-bit floats (e4m3), whose steps grow with their size."""

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def ends(self, zero: Tensor | None) -> Any:
        """The least and the largest code - zero: two numbers, or two tensors in the shape of `zero`."""
        return (self.low, self.high) if zero is None else (self.low - zero.float(), self.high - zero.float())


class Scales(NamedTuple):
    """`scale_OG` as it is stored, `zero_OG` int8 or None. A scale may be negative: a symmetric grid's group then reaches one
    step further up than down."""

    scale_OG: Tensor
    zero_OG: Tensor | None = None


@dataclass(frozen=True)
class Codes:
    """`codes_OI` int8 (or e4m3: `floats`), and the scales and zeros that make values of them."""

    codes_OI: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None = None

    def dequantized(self) -> Tensor:
        """[O, I] in fp32, in which readers multiply too."""
        steps_OGg = self.steps().unflatten(1, (self.scale_OG.shape[1], -1))
        values_OI: Tensor = (steps_OGg * self.scale_OG[:, :, None].float()).flatten(1)
        return values_OI

    def steps(self) -> Tensor:
        """[O, I] code - zero in fp32."""
        if self.zero_OG is None:
            return self.codes_OI.float()
        codes_OGg = self.codes_OI.float().unflatten(1, (self.zero_OG.shape[1], -1))
        steps_OI: Tensor = (codes_OGg - self.zero_OG[:, :, None]).flatten(1)
        return steps_OI

    @property
    def floats(self) -> bool:
        return self.codes_OI.is_floating_point()

    @classmethod
    def of_steps(cls, steps_OI: Tensor, scales: Scales, kind: torch.dtype = torch.int8) -> Codes:
        codes_OI = steps_OI
        if scales.zero_OG is not None:
            codes_OI = (steps_OI.unflatten(1, (scales.zero_OG.shape[1], -1)) + scales.zero_OG[:, :, None]).flatten(1)
        return cls(codes_OI.to(kind), *scales)

    @classmethod
    def joined(cls, parts: Sequence[Codes]) -> Codes:
        """Of a matrix whose rows were worked on part by part."""
        zeros = [part.zero_OG for part in parts if part.zero_OG is not None]
        codes_OI = torch.cat([part.codes_OI for part in parts])
        scale_OG = torch.cat([part.scale_OG for part in parts])
        return cls(codes_OI, scale_OG, torch.cat(zeros) if zeros else None)


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


def widest(weight_OI: Tensor, grid: Grid) -> Scales:
    """The whole range: of a symmetric grid each group's largest weight lies half a step inside the end (as compressed-tensors
    places it), an asymmetric one ends at its least and its largest weight."""
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    if grid.symmetric:
        return Scales(usable(weight_OGg.abs().amax(2) / ((grid.high - grid.low) / 2), grid))
    return _between(*_range(weight_OGg), grid)


def searched(weight_OI: Tensor, grid: Grid, importance_I: Tensor) -> Scales:
    """The scales of the least error, each column's square weighed by `importance_I`, over shares of the range and, where the grid
    is symmetric, both signs.

    A negative scale puts the extra code at the positive end, which is where the largest weight may be (as auto-round's
    full-range grids do): at 3 bits that is an eighth of the range.
    """
    rows = max(1, (MANY if kernels.usable(weight_OI) else CACHED) // weight_OI.shape[1])
    importance_Gg = importance_I.unflatten(0, (-1, grid.group))
    parts = [_search(part_OI, grid, importance_Gg) for part_OI in weight_OI.split(rows)]
    zeros = None if grid.symmetric else torch.cat([part.zero_OG for part in parts if part.zero_OG is not None])
    return Scales(torch.cat([part.scale_OG for part in parts]), zeros)


def _search(weight_OI: Tensor, grid: Grid, importance_Gg: Tensor) -> Scales:
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    tried = _candidates(weight_OI, grid)
    best_OG1 = (_least_at_once if kernels.usable(weight_OI) else _least)(weight_OGg, tried, grid, importance_Gg)[
        ..., None
    ]
    zero_OG = None if tried.zero_OG is None else tried.zero_OG.gather(2, best_OG1)[..., 0]
    return Scales(tried.scale_OG.gather(2, best_OG1)[..., 0], zero_OG)


def _least_at_once(weight_OGg: Tensor, tried: Scales, grid: Grid, importance_Gg: Tensor) -> Tensor:
    return kernels.search(weight_OGg, importance_Gg.float(), tried.scale_OG.float(), grid.ends(tried.zero_OG))


def _least(weight_OGg: Tensor, tried: Scales, grid: Grid, importance_Gg: Tensor) -> Tensor:
    """[O, G]: which of the scales tried has the least error, the first where several have."""
    scale_OGC = tried.scale_OG.to(weight_OGg.dtype)
    zeros = None if tried.zero_OG is None else tried.zero_OG.unbind(2)
    exact_OGg, rounded_OGg = torch.empty_like(weight_OGg), torch.empty_like(weight_OGg)
    errors = []
    for number, scale_OG in enumerate(scale_OGC.unbind(2)):
        torch.mul(weight_OGg, scale_OG.reciprocal()[:, :, None], out=exact_OGg)
        torch.round(exact_OGg, out=rounded_OGg).clamp_(*grid.ends(_wide(zeros[number]) if zeros else None))
        rounded_OGg.sub_(exact_OGg).square_().mul_(importance_Gg)
        errors.append(rounded_OGg.sum(2) * scale_OG.square())
    return torch.stack(errors, 2).nan_to_num_(torch.inf).argmin(2)


def _candidates(weight_OI: Tensor, grid: Grid) -> Scales:
    """[O, G, C]: the whole range and shares of it, where the grid is symmetric with both signs."""
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    share_C = torch.tensor(CLIPS, dtype=weight_OI.dtype, device=weight_OI.device)
    if not grid.symmetric:
        low_OG, high_OG = _range(weight_OGg)
        return _between(low_OG[..., None] * share_C, high_OG[..., None] * share_C, grid)
    step_OG = weight_OGg.abs().amax(2) / -grid.low
    share_C = torch.stack([share_C, -share_C], 1).flatten()
    shares_OGC = usable(step_OG[..., None] * share_C, grid)
    return Scales(torch.cat([widest(weight_OI, grid).scale_OG[..., None], shares_OGC], 2))


def _range(weight_OGg: Tensor) -> tuple[Tensor, Tensor]:
    """From each group's least weight to its largest, 0 among them: it must stay representable."""
    return weight_OGg.amin(2).clamp_max(0), weight_OGg.amax(2).clamp_min(0)


def _between(low_OG: Tensor, high_OG: Tensor, grid: Grid) -> Scales:
    scale_OG = usable((high_OG - low_OG) / (grid.high - grid.low), grid)
    zero_OG = (grid.low - low_OG / scale_OG.to(low_OG.dtype)).round().clamp(grid.low, grid.high)
    return Scales(scale_OG, zero_OG.to(torch.int8))


def _wide(zero_OG: Tensor | None) -> Tensor | None:
    """For all the inputs of a group."""
    return None if zero_OG is None else zero_OG[:, :, None]


def usable(scale_OG: Tensor, grid: Grid) -> Tensor:
    """The scale as the file holds it, 1 where its group is all zero or so small that the scale vanishes."""
    stored_OG = scale_OG.to(grid.dtype)
    return torch.where((stored_OG == 0) | ~torch.isfinite(stored_OG.float().reciprocal()), 1, stored_OG)


def nearest_float(weight_OI: Tensor, grid: Grid) -> Codes:
    """The nearest e4m3 of the weights over a scale that makes each group's largest the largest code. A search gains nothing: with
    a smaller scale the codes are as far apart, in proportion to their values, as before."""
    weight_OGg = weight_OI.unflatten(1, (-1, grid.group))
    scale_OG = usable(weight_OGg.abs().amax(2) / fp8.LARGEST, grid)
    codes_OGg = fp8.coded(weight_OGg / scale_OG.to(weight_OI.dtype)[:, :, None])
    return Codes(codes_OGg.flatten(1), scale_OG)


def nearest(weight_OI: Tensor, scales: Scales, grid: Grid) -> Codes:
    """Round to nearest."""
    weight_OGg = weight_OI.unflatten(1, (scales.scale_OG.shape[1], -1))
    steps_OGg = (weight_OGg / scales.scale_OG.to(weight_OI.dtype)[:, :, None]).round()
    return Codes.of_steps(steps_OGg.clamp(*grid.ends(_wide(scales.zero_OG))).flatten(1), scales)
