"""GPTQ: column by column to the nearest code, later columns making up for the error on real inputs (Frantar et al. 2022, arXiv:2210.17323).

Around the paper's core stand four things: scales searched for the least error weighed by the inputs' squares; columns in order of
those squares, groups staying where they were (so a reader needs no index); a target moved so that a layer fed by compressed layers
answers as the original did (the aim of GPTAQ, arXiv:2504.02692, in closed form); and, with the codes at hand, alternating exact
refits of the scales and coordinate descent over the codes (QuantEase, arXiv:2309.01885), neither of which can raise the objective

    trace((T - Q) H (T - Q)^T),    T the target [O, I], Q the dequantized codes, H = X^T X [I, I], damped.

Rows for which plain rounding does better take plain rounding.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.grid import Codes, Grid, absmax, nearest, searched
from llmos_cli.methods.hessian import damped, inverse_factor, moved_target
from llmos_cli.models.calibrate import Need, Statistics

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
    """How far the target moves to make up for the error of the layers before; 0: not at all."""
    passes: int = Field(2, ge=0)
    """Rounds of scale refits and coordinate descent after the columns."""


def quantize(weight_OI: Tensor, statistics: Statistics, grid: Grid, options: Options) -> Codes:
    """Codes of least objective; weights of exactly 0 keep code 0 and their part is made up for by the others."""
    weight_OI = weight_OI.float()
    keep_OI = weight_OI != 0
    hessian_II = damped(statistics.hessian_II, options.damping)
    target_OI = moved_target(weight_OI, statistics.drift_II, hessian_II, options.asymmetry)
    importance_I = hessian_II.diagonal()
    columns_I = (
        importance_I.argsort(descending=True, stable=True)
        if options.act_order
        else torch.arange(len(importance_I), device=importance_I.device)
    )
    scale_OG = searched(target_OI.where(keep_OI, 0), grid, importance_I)
    codes = column_by_column(target_OI, keep_OI, scale_OG, grid, statistics.hessian_II, columns_I, options)
    for _ in range(options.passes):
        codes = refit_scales(codes, target_OI, hessian_II, grid)
        codes = descend(codes, target_OI, keep_OI, hessian_II, columns_I, grid, options.block)
    plain = nearest(weight_OI, absmax(weight_OI, grid), grid)
    return better_rows(codes, plain, target_OI, hessian_II)


def column_by_column(
    target_OI: Tensor,
    keep_OI: Tensor,
    scale_OG: Tensor,
    grid: Grid,
    hessian_II: Tensor,
    columns_I: Tensor,
    options: Options,
) -> Codes:
    """The paper's algorithm 1 over `columns_I`, its updates beyond a block delayed to the block's end."""
    U_II = inverse_factor(hessian_II[columns_I][:, columns_I], options.damping)
    weight_OI, keep_OI = target_OI[:, columns_I], keep_OI[:, columns_I]
    scale_OI = scale_OG[:, columns_I // grid.group].float()
    codes_OI = torch.zeros_like(weight_OI)
    for start in range(0, len(columns_I), options.block):
        end = min(start + options.block, len(columns_I))
        weight_OB, U_BB = weight_OI[:, start:end].clone(), U_II[start:end, start:end]
        error_OB = torch.empty_like(weight_OB)
        for j in range(end - start):
            codes_OI[:, start + j], value_O = rounded(
                weight_OB[:, j], keep_OI[:, start + j], scale_OI[:, start + j], grid
            )
            error_OB[:, j] = (weight_OB[:, j] - value_O) / U_BB[j, j]
            weight_OB[:, j + 1 :].addr_(error_OB[:, j], U_BB[j, j + 1 :], alpha=-1)
        weight_OI[:, end:] -= error_OB @ U_II[start:end, end:]
    return Codes(codes_OI[:, columns_I.argsort()].to(torch.int8), scale_OG)


def rounded(wanted_O: Tensor, keep_O: Tensor, scale_O: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Codes (as floats) of one column and the values that readers compute from them."""
    codes_O = (wanted_O / scale_O).round_().clamp_(grid.low, grid.high) * keep_O
    return codes_O, codes_O * scale_O


def refit_scales(codes: Codes, target_OI: Tensor, hessian_II: Tensor, grid: Grid) -> Codes:
    """Each group's scale to the minimum of the objective along it, one group after another, codes as they are."""
    scale_OG = codes.scale_OG.clone()
    gradient_OI = (target_OI - codes.dequantized()) @ hessian_II
    for group in range(scale_OG.shape[1]):
        inputs = slice(group * grid.group, (group + 1) * grid.group)
        codes_Og = codes.codes_OI[:, inputs].float()
        slope_O = (codes_Og * gradient_OI[:, inputs]).sum(1)
        curvature_O = (codes_Og @ hessian_II[inputs, inputs] * codes_Og).sum(1)
        old_O = scale_OG[:, group].float()
        new_O = (old_O + slope_O / curvature_O.where(curvature_O > 0, torch.inf)).to(grid.dtype)
        change_O = new_O.float() - old_O
        # Rounding to the file's dtype may overshoot the minimum; a vanishing scale would lose its codes.
        worth_O = (change_O * curvature_O < 2 * slope_O) == (change_O > 0)
        worth_O &= (change_O != 0) & (new_O.float().abs() > 0.1 * old_O.abs())
        scale_OG[:, group] = torch.where(worth_O, new_O, scale_OG[:, group])
        moved_Og = codes_Og * torch.where(worth_O, change_O, 0)[:, None]
        gradient_OI -= moved_Og @ hessian_II[inputs]
    return Codes(codes.codes_OI, scale_OG)


def descend(
    codes: Codes, target_OI: Tensor, keep_OI: Tensor, hessian_II: Tensor, columns_I: Tensor, grid: Grid, block: int
) -> Codes:
    """One pass of coordinate descent: each code to the best one given all the others, scales as they are."""
    hessian_II = hessian_II[columns_I][:, columns_I]
    keep_OI, scale_OI = keep_OI[:, columns_I], codes.scale_OG[:, columns_I // grid.group].float()
    value_OI = codes.dequantized()[:, columns_I]
    codes_OI = codes.codes_OI[:, columns_I].float()
    gradient_OI = (target_OI[:, columns_I] - value_OI) @ hessian_II
    for start in range(0, len(columns_I), block):
        end = min(start + block, len(columns_I))
        gradient_OB, hessian_BB = gradient_OI[:, start:end].clone(), hessian_II[start:end, start:end]
        moved_OB = torch.empty_like(gradient_OB)
        for j in range(end - start):
            old_O = value_OI[:, start + j]
            wanted_O = old_O + gradient_OB[:, j] / hessian_BB[j, j]
            codes_OI[:, start + j], value_O = rounded(wanted_O, keep_OI[:, start + j], scale_OI[:, start + j], grid)
            moved_OB[:, j] = value_O - old_O
            gradient_OB.addr_(moved_OB[:, j], hessian_BB[j], alpha=-1)
        gradient_OI -= moved_OB @ hessian_II[start:end]
    return Codes(codes_OI[:, columns_I.argsort()].to(torch.int8), codes.scale_OG)


def better_rows(codes: Codes, other: Codes, target_OI: Tensor, hessian_II: Tensor) -> Codes:
    """Row by row whichever of the two has the smaller objective."""
    better_O1 = (objective(codes, target_OI, hessian_II) <= objective(other, target_OI, hessian_II))[:, None]
    return Codes(
        torch.where(better_O1, codes.codes_OI, other.codes_OI), torch.where(better_O1, codes.scale_OG, other.scale_OG)
    )


def objective(codes: Codes, target_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """[O]: the diagonal of (T - Q) H (T - Q)^T."""
    error_OI = target_OI - codes.dequantized()
    return (error_OI @ hessian_II * error_OI).sum(1)
