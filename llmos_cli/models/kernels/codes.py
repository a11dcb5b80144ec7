"""The codes of one linear layer, or of several that read the same input, as every kernel is given them.

Shapes: O outputs, I inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmos_cli.models import packing

SLICE = 4096
"""Outputs rounded at once."""


@dataclass(frozen=True)
class Codes:
    """`codes_OI` int8 or float8_e4m3fn, `scales_OG`, `zeros_OG` (None: symmetric); `rounds_inputs`: W8A8, each token rounded to int8 as well, or FP8, to e4m3."""

    codes_OI: Tensor
    scales_OG: Tensor
    bits: int
    rounds_inputs: bool = False
    zeros_OG: Tensor | None = None
    bias_O: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Outputs, inputs, groups."""
        return (*self.codes_OI.shape, self.scales_OG.shape[1])

    @property
    def held(self) -> int:
        """Bits in which kernels hold a code: fewer take no less room there, and no less time."""
        return 4 if self.bits <= 4 else 8

    @property
    def floats(self) -> bool:
        return self.codes_OI.is_floating_point()

    def dense(self, dtype: torch.dtype) -> Tensor:
        zeros_OG = None if self.zeros_OG is None else self.zeros_OG.float()
        return packing.dequantize(self.codes_OI, self.scales_OG.float(), zeros_OG).to(dtype)

    def kind(self) -> str:
        """What decides how fast its kernels are."""
        outputs, inputs, groups = self.shape
        scheme = "fp8" if self.floats else "w8a8" if self.rounds_inputs else f"w{self.bits}"
        return f"{scheme} {outputs}x{inputs} in {groups}{'' if self.zeros_OG is None else ' asymmetric'}"


def side_by_side(parts: Sequence[Codes]) -> Codes | None:
    """Layers of one scheme as one layer whose outputs stand side by side; None when their schemes differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    schemes = {
        (part.codes_OI.dtype, part.bits, part.rounds_inputs, part.shape[1:], part.zeros_OG is None) for part in parts
    }
    if len(schemes) > 1:
        return None
    return replace(
        first,
        codes_OI=torch.cat([part.codes_OI for part in parts]),
        scales_OG=torch.cat([part.scales_OG for part in parts]),
        zeros_OG=None if first.zeros_OG is None else torch.cat([_zeros(part) for part in parts]),
        bias_O=None if all(part.bias_O is None for part in parts) else torch.cat([_bias(part) for part in parts]),
    )


def rounded(weight_OI: Tensor, bits: int, group: int | None = None, bias_O: Tensor | None = None) -> Codes:
    """A dense weight rounded to the nearest code, the largest magnitude of each group of `group` inputs (all: None) kept.

    Some outputs at a time: a vocabulary's head in fp32, several times over, would be the peak of a deployment's memory.
    """
    parts = [_rounded(part_OI, bits, group or weight_OI.shape[1]) for part_OI in weight_OI.detach().split(SLICE)]
    codes, scales = zip(*parts, strict=True)
    return Codes(torch.cat(codes), torch.cat(scales), bits, bias_O=bias_O)


def _rounded(weight_OI: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    weight_OGg = weight_OI.float().unflatten(1, (-1, group))
    most = 2 ** (bits - 1) - 1
    scales_OG = weight_OGg.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny) / most
    codes_OGg = (weight_OGg / scales_OG.unsqueeze(-1)).round().clamp(-most - 1, most)
    return codes_OGg.to(torch.int8).flatten(1), scales_OG


def _zeros(part: Codes) -> Tensor:
    assert part.zeros_OG is not None
    return part.zeros_OG


def _bias(part: Codes) -> Tensor:
    return part.codes_OI.new_zeros(part.shape[0], dtype=torch.float32) if part.bias_O is None else part.bias_O.float()
