"""Which weights stay: unstructured and n:m masks from scores, shared by every pruning method.

Scores and masks are [O, I]; a mask is True where the weight stays. Among equal scores the lower index goes first, so that
the same scores give the same mask everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_cli.errors import UsageError

DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True)
class Target:
    """`sparsity` is the share of weights that become zero; with `m` > 0, at most `n` of each `m` consecutive inputs stay."""

    sparsity: float
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.sparsity:.0%} unstructured"

    def fits(self, inputs: int) -> bool:
        """Whether a row of this many inputs can hold the pattern."""
        return self.m == 0 or inputs % self.m == 0


def target(pattern: str, sparsity: float | None) -> Target:
    """`unstructured` or `n:m`, whose sparsity is 1 - n/m and nothing else; UsageError where the two contradict each other."""
    if pattern == "unstructured":
        return Target(DEFAULT_SPARSITY if sparsity is None else sparsity)
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise UsageError(
            f"pattern {pattern!r} is neither 'unstructured' nor n:m with 0 < n < m", hint="2:4 keeps 2 of each 4 inputs"
        )
    n, m = int(found[1]), int(found[2])
    if sparsity is not None and abs(sparsity - (1 - n / m)) > 1e-6:
        raise UsageError(
            f"pattern {pattern} means sparsity {1 - n / m:g}, not {sparsity:g}", hint="leave one of the two out"
        )
    return Target(1 - n / m, n, m)


def keep(score_OI: Tensor, target: Target, *, per: str) -> Tensor:
    """The mask of `target` by score: compared within each n:m group, else `per` "row" or over the whole "layer"."""
    if target.m:
        return keep_n_of_m(score_OI, target.n, target.m)
    if per == "row":
        return keep_best_of_rows(score_OI, target.sparsity)
    return keep_best_of_rows(score_OI.reshape(1, -1), target.sparsity).view_as(score_OI)


def keep_best_of_rows(score_OI: Tensor, sparsity: float) -> Tensor:
    """False for the round(sparsity * I) lowest scores of each row."""
    pruned = pruned_count(score_OI.shape[1], sparsity)
    lowest = score_OI.sort(dim=1, stable=True).indices[:, :pruned]
    return torch.ones_like(score_OI, dtype=torch.bool).scatter_(1, lowest, False)


def keep_n_of_m(score_OI: Tensor, n: int, m: int) -> Tensor:
    """True for the `n` highest scores of each `m` consecutive inputs; I must be a multiple of m."""
    rows, inputs = score_OI.shape
    return keep_best_of_rows(score_OI.reshape(rows * inputs // m, m), 1 - n / m).view(rows, inputs)


def pruned_count(size: int, sparsity: float) -> int:
    return int(size * sparsity + 0.5)
