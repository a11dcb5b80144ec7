"""What is summed up of a matrix's inputs: norms, a Hessian, the drift from the original's inputs; in fp32, over rows in their order.

Where the model computes in bf16, so do the products, whose factors are what the layer is given: their sums are in fp32 all the same.

Shapes: N rows of inputs (tokens, patches, steps), I inputs of a matrix, B samples, L positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor

from llmos_cli.models.inputs import Inputs
from llmos_cli.models.kernels import gram

Need = Literal["norms", "hessian", "drift"]
"""What a method asks for: the norm of each input, X^T X, and X^T (X_ref - X)."""


@dataclass
class Statistics:
    """Sums over the `count` rows that reached one weight matrix, of the kinds that were asked for; `dtype` is that of the factors."""

    dtype: torch.dtype = torch.float32
    count: int = 0
    square_I: Tensor = field(default_factory=lambda: torch.empty(0))
    hessian_II: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    drift_II: Tensor | None = None
    worked_out: dict[Any, Any] = field(default_factory=dict)
    """What a method made of the sums, by what it asked: for the other matrices that share them."""

    @property
    def norm_I(self) -> Tensor:
        """Euclidean norm of each input over all rows."""
        return self.square_I.sqrt()

    def add_all(
        self, calls: list[Inputs], references: list[Inputs] | None, keep_BL: Tensor | None, needs: Collection[Need]
    ) -> None:
        """Add the rows of a block's calls of the layer; those of the reference stream must have come alike to be compared."""
        comparable = references is not None and [call.source.shape for call in references] == [
            call.source.shape for call in calls
        ]
        for number, call in enumerate(calls):
            others: Iterator[Tensor | None] = repeat(None)
            if comparable and references is not None:
                others = references[number].rows(keep_BL)
            for rows_NI, reference_NI in zip(call.rows(keep_BL), others, strict=False):
                self.add(rows_NI, reference_NI, needs)

    def add(self, rows_NI: Tensor, reference_NI: Tensor | None, needs: Collection[Need]) -> None:
        self.worked_out.clear()
        if self.count == 0:
            self._start(rows_NI, needs)
        self.count += len(rows_NI)
        if "norms" in needs:
            self.square_I += rows_NI.float().square().sum(0)
        if "hessian" in needs:
            add_product(self.hessian_II, rows_NI, dtype=self.dtype)
        if "drift" in needs and reference_NI is not None:
            if self.drift_II is None:
                self.drift_II = torch.zeros_like(self.hessian_II)
            add_product(self.drift_II, rows_NI, reference_NI.float() - rows_NI.float(), dtype=self.dtype)

    def _start(self, rows_NI: Tensor, needs: Collection[Need]) -> None:
        inputs = rows_NI.shape[1]
        if "norms" in needs:
            self.square_I = rows_NI.new_zeros(inputs, dtype=torch.float32)
        if "hessian" in needs:
            self.hessian_II = rows_NI.new_zeros(inputs, inputs, dtype=torch.float32)


def add_product(sum_II: Tensor, rows_NI: Tensor, others_NI: Tensor | None = None, *, dtype: torch.dtype) -> None:
    """sum_II += X^T Y of factors in `dtype`; X^T X where Y is absent."""
    if dtype == torch.bfloat16 and gram.usable(sum_II):
        gram.add_gram(sum_II, rows_NI, others_NI)
        return
    rows_NI = rows_NI.to(dtype).float()
    if others_NI is None:
        add_gram(sum_II, rows_NI)
    else:
        sum_II.addmm_(rows_NI.T, others_NI.to(dtype).float())


STRIPES = 4
"""Into which a symmetric product is cut: more of them spare little more, and each is a smaller product."""


def add_gram(sum_II: Tensor, rows_NI: Tensor) -> None:
    """sum_II += X^T X, of which only what lies on and below the diagonal is multiplied out, in stripes: 5/8 of the work."""
    width = max(1, -(-len(sum_II) // STRIPES))
    for start in range(0, len(sum_II), width):
        end = start + width
        sum_II[start:end, :end].addmm_(rows_NI[:, start:end].T, rows_NI[:, :end])
        sum_II[:start, start:end] = sum_II[start:end, :start].T
