"""SparseGPT: column by column the cheapest weights go and the rest of the row makes up for them (Frantar & Alistarh 2023, arXiv:2301.00774)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.hessian import alive, factored, inverse_factor, moved_target
from llmos_cli.methods.patterns import Target, keep_best_of_rows, keep_n_of_m
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"hessian", "drift"})


class Options(Section):
    damping: float = Field(0.01, gt=0)
    """Added to the Hessian's diagonal, as a share of its mean; raised where the factorisation fails."""
    asymmetry: float = Field(0.75, ge=0, le=1)
    """How far the weights move first to make up for the error of the layers before; 0: not at all, in half the time."""
    block: int = Field(128, ge=1)
    """Columns whose masks are chosen together."""


def needs(options: Options) -> frozenset[Need]:
    """Without the original's stream there is nothing to make up for, and half as much to run."""
    return NEEDS if options.asymmetry else NEEDS - {"drift"}


def prune(weight_OI: Tensor, statistics: Statistics, target: Target, options: Options) -> Tensor:
    """Equations 3 to 5 of the paper, on U, the upper factor of the inverse Hessian: removing w_j costs w_j^2 / U_jj^2."""
    born_zero_OI = weight_OI == 0
    weight_OI = weight_OI.float().clone()
    if options.asymmetry and statistics.drift_II is not None:
        with factored(statistics, options.damping) as factor:
            weight_OI = moved_target(weight_OI, statistics.drift_II, factor, options.asymmetry)
    U_II = inverse_factor(statistics.hessian_II, options.damping)
    # What is zero already, or never sees an input, goes first.
    worth_OI = alive(statistics.hessian_II) & ~born_zero_OI
    inputs = weight_OI.shape[1]
    block = options.block if not target.m else max(1, options.block // target.m) * target.m
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        weight_OB, U_BB = weight_OI[:, start:end], U_II[start:end, start:end]
        error_OB = torch.zeros_like(weight_OB)
        keep_OB = torch.ones_like(weight_OB, dtype=torch.bool)
        if not target.m:
            # Rows of a block compete with each other: a row that matters more keeps more.
            cost_OB = (weight_OB / U_BB.diagonal()).square() * worth_OI[:, start:end]
            keep_OB = keep_best_of_rows(cost_OB.reshape(1, -1), target.sparsity).view_as(cost_OB)
        for j in range(end - start):
            if target.m and j % target.m == 0:
                group = slice(j, j + target.m)
                cost_OM = (weight_OB[:, group] / U_BB.diagonal()[group]).square() * worth_OI[:, start:end][:, group]
                keep_OB[:, group] = keep_n_of_m(cost_OM, target.n, target.m)
            stays_O = keep_OB[:, j] & ~born_zero_OI[:, start + j]
            error_OB[:, j] = torch.where(stays_O, 0, weight_OB[:, j]) / U_BB[j, j]
            weight_OB[:, j:] -= error_OB[:, j, None] * U_BB[j, j:]
            weight_OB[:, j] = weight_OB[:, j].where(stays_O, 0)
        weight_OI[:, end:] -= error_OB @ U_II[start:end, end:]
    return weight_OI
