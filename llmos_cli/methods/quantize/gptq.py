"""GPTQ: column by column to the nearest code, later columns making up for the error on real inputs (Frantar et al. 2022, arXiv:2210.17323).

Around the paper's core stand four things: scales searched for the least error as the later columns leave it; columns in order of
their inputs' size, groups staying where they were (so a reader needs no index); a target moved so that a layer fed by compressed
layers answers as the original did (the aim of GPTAQ, arXiv:2504.02692, in closed form); and, with the codes at hand, alternating
exact refits of the scales and coordinate descent over the codes (QuantEase, arXiv:2309.01885), neither of which can raise the objective

    trace((T - Q) H (T - Q)^T),    T the target [O, I], Q the dequantized codes, H = X^T X [I, I], damped.

The core is written as what it is, Babai's nearest plane (arXiv:2507.18553): with H = R R^T, R upper triangular, the objective is the sum
over columns j of R_jj^2 (w_j - q_j)^2, where w_j = t_j + sum over i < j of (t_i - q_i) R_ij / R_jj. So one factorisation is enough,
R_jj^2 is what an error in column j really costs, and each column is computed once, from those before it, instead of being rewritten
after each of them. Rows of the weight stand as columns here, [I, O], so that a step works on contiguous memory.
Rows for which plain rounding does better take plain rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, Scales, nearest, searched, widest
from llmos_cli.methods.hessian import Factor, factored, moved_target, quadratic
from llmos_cli.models.kernels import rounding as kernels
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"hessian", "drift"})
ACTIVATIONS: int | None = None


class Options(Section):
    damping: float = Field(0.01, gt=0)
    """Added to the Hessian's diagonal, as a share of its mean; raised where the factorisation fails."""
    act_order: bool = True
    """Columns in order of their inputs' size, largest first."""
    block: int = Field(128, ge=1)
    """Columns whose errors are carried on together: speed only."""
    asymmetry: float = Field(0.75, ge=0, le=1)
    """How far the target moves to make up for the error of the layers before; 0: not at all, in half the time."""
    passes: int = Field(2, ge=0)
    """Rounds of scale refits and coordinate descent after the columns."""


def needs(options: Options) -> frozenset[Need]:
    """Without the original's stream there is nothing to make up for, and half as much to run."""
    return NEEDS if options.asymmetry else NEEDS - {"drift"}


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    """Codes of least objective; weights of exactly 0 stay 0 and their part is made up for by the others."""
    with factored(statistics, options.damping, by_size=options.act_order) as factor:
        weight_OI = weight_OI.float()
        # Where torch walks the columns one by one, every part would walk them anew.
        together = max(LEAST_ROWS, AT_ONCE // weight_OI.shape[1]) if kernels.usable(weight_OI) else len(weight_OI)
        parts = weight_OI.split(max(1, together))
        return Codes.joined([_of_rows(part_OI, statistics, grid, options, factor) for part_OI in parts])


AT_ONCE = 1 << 20
"""Weights that are worked on at once, some six times over: rows are independent of each other."""
LEAST_ROWS = 256
"""Enough to keep several threads busy, whatever their number: on that the codes must not depend."""


def _of_rows(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options, factor: Factor) -> Codes:
    keep_OI = weight_OI != 0
    target_OI = moved_target(weight_OI, statistics.drift_II, factor, options.asymmetry)
    scales = searched(target_OI.where(keep_OI, 0), grid, factor.cost_I[factor.columns_I.argsort()])
    codes = column_by_column(target_OI, keep_OI, scales, grid, factor, options.block)
    codes = settled(codes, target_OI, keep_OI, statistics.hessian_II, grid, options)
    plain = nearest(weight_OI, widest(weight_OI, grid), grid)
    return better_rows(codes, plain, target_OI, statistics.hessian_II)


def column_by_column(
    target_OI: Tensor, keep_OI: Tensor, scales: Scales, grid: Grid, factor: Factor, block: int
) -> Codes:
    """The nearest plane over the columns in the factor's order."""
    columns_I = factor.columns_I
    target_IO = target_OI.T[columns_I].contiguous()
    keep_IO = _pruned(keep_OI, columns_I)
    steps_IO, _ = in_turn(target_IO, target_IO, factor.carry_II, keep_IO, scales, columns_I // grid.group, grid, block)
    return Codes.of_steps(steps_IO[columns_I.argsort()].T.contiguous(), scales)


def settled(
    codes: Codes, target_OI: Tensor, keep_OI: Tensor, hessian_II: Tensor, grid: Grid, options: Options
) -> Codes:
    """Group after group, several times over: its scale to the minimum of the objective along it, then each of its codes to the best
    one given all the others."""
    if not options.passes:
        return codes
    steps_IO, scale_OG = codes.steps().T.contiguous(), codes.scale_OG.clone()
    error_IO = (target_OI - codes.dequantized()).T.contiguous()
    keep_IO = _pruned(keep_OI)
    for _ in range(options.passes):
        for group in range(scale_OG.shape[1]):
            inputs = slice(group * grid.group, (group + 1) * grid.group)
            hessian_gg, steps_gO, error_gO = hessian_II[inputs, inputs], steps_IO[inputs], error_IO[inputs]
            gradient_gO = hessian_II[inputs] @ error_IO
            change_O = scale_change(scale_OG[:, group], steps_gO, gradient_gO, hessian_gg, grid)
            scale_OG[:, group] += change_O.to(grid.dtype)
            moved_gO = steps_gO * change_O
            error_gO -= moved_gO
            gradient_gO -= hessian_gg @ moved_gO
            of_group = Scales(scale_OG[:, group : group + 1], _column(codes.zero_OG, group))
            keep_gO = None if keep_IO is None else keep_IO[inputs]
            steps_gO[:], left_gO = descend(steps_gO, gradient_gO, hessian_gg, keep_gO, of_group, grid, options.block)
            error_gO += left_gO
    return Codes.of_steps(steps_IO.T.contiguous(), Scales(scale_OG, codes.zero_OG))


def scale_change(scale_O: Tensor, steps_gO: Tensor, gradient_gO: Tensor, hessian_gg: Tensor, grid: Grid) -> Tensor:
    """[O], fp32: what takes each row's scale of a group to the minimum of the objective along it, as far as the file can hold it."""
    slope_O = (steps_gO * gradient_gO).sum(0)
    curvature_O = (hessian_gg @ steps_gO).mul_(steps_gO).sum(0)
    old_O = scale_O.float()
    new_O = (old_O + slope_O / curvature_O.where(curvature_O > 0, torch.inf)).to(grid.dtype).float()
    change_O = new_O - old_O
    # Rounding to the file's dtype may overshoot the minimum; a vanishing scale would lose its codes.
    worth_O = (change_O * curvature_O < 2 * slope_O) == (change_O > 0)
    worth_O &= (change_O != 0) & (new_O.abs() > 0.1 * old_O.abs())
    return change_O.where(worth_O, 0)


def descend(
    steps_gO: Tensor,
    gradient_gO: Tensor,
    hessian_gg: Tensor,
    keep_gO: Tensor | None,
    scales: Scales,
    grid: Grid,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Coordinate descent over the columns of one group: the new steps, and by how much the values fell."""
    value_gO, curvature_g1 = steps_gO * scales.scale_OG.float().T, hessian_gg.diagonal()[:, None]
    wanted_gO = torch.addcdiv(value_gO, gradient_gO, curvature_g1)
    groups_g = torch.zeros(len(steps_gO), dtype=torch.int64, device=steps_gO.device)
    return in_turn(wanted_gO, value_gO, hessian_gg / curvature_g1, keep_gO, scales, groups_g, grid, block)


def in_turn(
    wanted_IO: Tensor,
    start_IO: Tensor,
    carry_II: Tensor,
    keep_IO: Tensor | None,
    scales: Scales,
    groups_I: Tensor,
    grid: Grid,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Row j to the nearest step to wanted_j + sum over i < j of carry_ji left_i, where left_i = start_i - value_i: steps and left.

    `carry_II` is read below its diagonal. Rows before a block are added by one product; those within it one by one. `groups_I`: the
    group of each row.
    """
    turn = kernels.in_turn if kernels.usable(wanted_IO) else one_by_one
    steps_IO, left_IO = torch.empty_like(wanted_IO), torch.empty_like(wanted_IO)
    scale_GO = scales.scale_OG.float().T.contiguous()
    ends = grid.ends(None if scales.zero_OG is None else scales.zero_OG.T.contiguous())
    for first in range(0, len(wanted_IO), min(block, kernels.MOST_ROWS)):
        rows = slice(first, min(first + min(block, kernels.MOST_ROWS), len(wanted_IO)))
        wanted_BO = wanted_IO[rows]
        if first:
            wanted_BO = torch.addmm(wanted_BO, carry_II[rows, :first], left_IO[:first])
        keep_BO = None if keep_IO is None else keep_IO[rows]
        into = steps_IO[rows], left_IO[rows]
        turn(wanted_BO, start_IO[rows], carry_II[rows, rows], keep_BO, scale_GO, ends, groups_I[rows], *into)
    return steps_IO, left_IO


def one_by_one(
    wanted_BO: Tensor,
    start_BO: Tensor,
    carry_BB: Tensor,
    keep_BO: Tensor | None,
    scale_GO: Tensor,
    ends: kernels.Ends,
    groups_B: Tensor,
    steps_BO: Tensor,
    left_BO: Tensor,
) -> None:
    """`kernels.in_turn`, wherever torch computes."""
    inverse_GO, left_OB = scale_GO.reciprocal(), left_BO.T
    for j, group in enumerate(groups_B.tolist()):
        wanted_O, steps_O = wanted_BO[j], steps_BO[j]
        if j:
            wanted_O = torch.addmv(wanted_O, left_OB[:, :j], carry_BB[j, :j])
        torch.mul(wanted_O, inverse_GO[group], out=steps_O).round_().clamp_(*_of_group(ends, group))
        if keep_BO is not None:
            steps_O *= keep_BO[j]
        torch.addcmul(start_BO[j], steps_O, scale_GO[group], value=-1, out=left_BO[j])


def better_rows(codes: Codes, other: Codes, target_OI: Tensor, hessian_II: Tensor) -> Codes:
    """Row by row whichever of the two has the smaller objective."""
    better_O1 = (objective(codes, target_OI, hessian_II) <= objective(other, target_OI, hessian_II))[:, None]
    zero_OG = None
    if codes.zero_OG is not None and other.zero_OG is not None:
        zero_OG = codes.zero_OG.where(better_O1, other.zero_OG)
    return Codes(
        codes.codes_OI.where(better_O1, other.codes_OI), codes.scale_OG.where(better_O1, other.scale_OG), zero_OG
    )


def objective(codes: Codes, target_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """[O]: the diagonal of (T - Q) H (T - Q)^T."""
    return quadratic(target_OI - codes.dequantized(), hessian_II)


def _pruned(keep_OI: Tensor, columns_I: Tensor | None = None) -> Tensor | None:
    """1 where a weight may differ from zero, [I, O]; None where all may."""
    if keep_OI.all():
        return None
    keep_IO = keep_OI.T if columns_I is None else keep_OI.T[columns_I]
    return keep_IO.float().contiguous()


def _column(zero_OG: Tensor | None, group: int) -> Tensor | None:
    return None if zero_OG is None else zero_OG[:, group : group + 1]


def _of_group(ends: kernels.Ends, group: int) -> Any:
    low, high = ends
    return (low[group], high[group]) if isinstance(low, Tensor) and isinstance(high, Tensor) else ends
