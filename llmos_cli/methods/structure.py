"""What structured pruning methods speak of: the matrices that read a group's units, and the order in which units go.

Shapes: O outputs, I inputs, N units, R inputs of a matrix that are one unit, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """A matrix, X^T X of its inputs over the calibration rows, and the inputs that each unit is; where gradients are looked at, what
    each sample's loss would lose without an input, to first order."""

    weight_OI: Tensor
    hessian_II: Tensor
    index_NR: Tensor
    moves_SI: Tensor | None = None


@dataclass(frozen=True)
class Ranking:
    """`order_N`: units, the first to go first; `cost_N1[k]`: squared error of the readers' outputs without the first k, summed
    over the calibration rows."""

    order_N: Tensor
    cost_N1: Tensor

    def kept(self, count: int) -> Tensor:
        """[N] bool, True for the `count` units that go last."""
        stays_N = torch.ones(len(self.order_N), dtype=torch.bool)
        stays_N[self.order_N[: len(self.order_N) - count]] = False
        return stays_N
