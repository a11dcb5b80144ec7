"""A quantized matrix: the codes that stand for it, in memory or in the file of its finished block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from llmos_cli.methods.grid import Codes, Grid, Rounding
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.quantized import Quantized


@dataclass(frozen=True)
class Coded:
    """A matrix, its codes (or what reads them) and the grid they lie on; its weights from before, until the block's codes are
    refined."""

    matrix: Matrix
    held: Codes | Callable[[], Codes]
    grid: Grid
    weight_OI: Tensor | None = None

    @property
    def codes(self) -> Codes:
        return self.held if isinstance(self.held, Codes) else self.held()

    def rounding(self) -> Rounding:
        assert self.weight_OI is not None
        return Rounding(self.weight_OI, self.codes, self.grid)

    def quantized(self) -> Quantized:
        """As it is written."""
        codes, whole = self.codes, self.grid.group == self.matrix.inputs
        return Quantized(
            self.matrix.shaped(codes.codes_OI),
            codes.scale_OG,
            self.grid.bits,
            -1 if whole else self.grid.group,
            codes.zero_OG,
        )


def average_bits(coded: Mapping[str, Coded]) -> float:
    """Bits a weight over all quantized matrices, scales and zeros included."""
    bits = 0
    for entry in coded.values():
        codes = entry.codes
        zeros = 0 if codes.zero_OG is None else codes.zero_OG.numel()
        bits += (entry.matrix.shape.numel() + zeros) * entry.grid.bits + codes.scale_OG.nbytes * 8
    return bits / sum(entry.matrix.shape.numel() for entry in coded.values())
