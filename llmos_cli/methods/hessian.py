"""A layer's damped Hessian as triangular factors, which SparseGPT and GPTQ walk column by column.

H = X^T X, [I, I] in fp32, over calibration inputs X [N, I]. Removing or rounding column j, row U[j, j:] of U^T U = H^-1 says how the
columns after it make up for it; column R[:j, j] of R R^T = H says how j itself is to make up for those before it. R = U^-1, and
costs a third as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_cli.errors import LlmosError
from llmos_cli.models.matrices import finite
from llmos_cli.models.statistics import STRIPES, Statistics


def alive(hessian_II: Tensor) -> Tensor:
    """[I], False where an input was zero all along: nothing is known of such a column, and nothing it does matters."""
    return hessian_II.diagonal() > 0


def damped(hessian_II: Tensor, share: float) -> Tensor:
    """H with dead inputs' diagonal at the mean of the living, and `share` of that mean added to all."""
    damped_II = hessian_II.clone()
    damped_II.diagonal().add_(_added(hessian_II.diagonal(), share))
    return damped_II


def _added(diagonal_I: Tensor, share: float) -> Tensor:
    living_I = diagonal_I > 0
    mean = diagonal_I[living_I].mean() if living_I.any() else diagonal_I.new_ones(())
    return torch.where(living_I, 0, mean) + share * mean


def inverse_factor(hessian_II: Tensor, damping: float) -> Tensor:
    """U upper triangular with U^T U = (H + damping * mean(diag H) * 1)^-1; damping grows tenfold until it exists."""
    if not finite(hessian_II):
        raise _overflow()
    upper_II: Tensor
    while damping <= 10:
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II.float(), damping))
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not failed and finite(upper_II.mT):
            return upper_II
        damping *= 10
    raise _singular()


@dataclass(frozen=True)
class Factor:
    """H, damped, as C D C^T, its columns in the order `columns_I`: `carry_II` is C^T, lower triangular with ones on its diagonal,
    and `cost_I` the diagonal of D. With the R of this file's head, R = C sqrt(D): column j of C says how j makes up for those before it, D_jj is
    what an error in j costs."""

    carry_II: Tensor
    cost_I: Tensor
    columns_I: Tensor

    def solve(self, right_IK: Tensor) -> Tensor:
        """H^-1 B of `right_IK`, both in H's own order."""
        half_IK = torch.linalg.solve_triangular(
            self.carry_II.T, right_IK[self.columns_I], upper=True, unitriangular=True
        )
        half_IK /= self.cost_I[:, None]
        solved_IK = torch.linalg.solve_triangular(self.carry_II, half_IK, upper=False, unitriangular=True)
        found_IK: Tensor = solved_IK[self.columns_I.argsort()]
        return found_IK


@contextmanager
def factored(statistics: Statistics, damping: float, *, by_size: bool = False) -> Iterator[Factor]:
    """The factor of a Hessian, made once for all matrices that share it; `by_size`: columns in the order of their inputs' size,
    largest first. Within it the Hessian itself is damped as much, and afterwards as it was: of a wide layer it is the largest thing
    in memory."""
    hessian_II, known, asked = statistics.hessian_II, statistics.worked_out, (damping, by_size)
    undamped_I = hessian_II.diagonal().clone()
    if asked not in known:
        known[asked] = _first_factor(hessian_II, damping, by_size)
    factor, added_I = known[asked]
    try:
        hessian_II.diagonal().copy_(undamped_I + added_I)
        yield factor
    finally:
        hessian_II.diagonal().copy_(undamped_I)


def _first_factor(hessian_II: Tensor, damping: float, by_size: bool) -> tuple[Factor, Tensor]:
    """With what was added to the diagonal [I]: damping grows tenfold until the factor exists."""
    if not finite(hessian_II):
        raise _overflow()
    diagonal_I = hessian_II.diagonal()
    while damping <= 10:
        added_I = _added(diagonal_I, damping)
        size_I = diagonal_I + added_I
        order_I = (
            size_I.argsort(descending=True, stable=True) if by_size else torch.arange(len(size_I), device=size_I.device)
        )
        if (found := _factor(hessian_II, added_I, order_I)) is not None:
            return found, added_I
        damping *= 10
    raise _singular()


def _factor(hessian_II: Tensor, added_I: Tensor, order_I: Tensor) -> Factor | None:
    """From the last column to the first, so that its Cholesky factor read backwards is upper triangular; all in one place."""
    backwards_I = order_I.flip(0)
    # A symmetric matrix stands in its rows as it does in its columns, which is how LAPACK wants it.
    lower_II = hessian_II[backwards_I[:, None], backwards_I].mT
    lower_II.diagonal().add_(added_I[backwards_I])
    failed = torch.empty((), dtype=torch.int32, device=hessian_II.device)
    torch.linalg.cholesky_ex(lower_II, out=(lower_II, failed))
    if failed or not finite(lower_II.mT):
        return None
    carry_II = lower_II.mT
    _turn_round(carry_II.view(-1))
    diagonal_I = carry_II.diagonal().clone()
    carry_II /= diagonal_I[:, None]
    return Factor(carry_II, diagonal_I.square(), order_I)


PART = 1 << 20
"""Numbers that are turned round at once."""


def _turn_round(flat_N: Tensor) -> None:
    """The last first, in place."""
    half = len(flat_N) // 2
    for start in range(0, half, PART):
        count = min(PART, half - start)
        first, last = flat_N[start : start + count], flat_N[len(flat_N) - start - count : len(flat_N) - start]
        turned = first.flip(0)
        first.copy_(last.flip(0))
        last.copy_(turned)


def quadratic(rows_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """[O]: w H w^T of each row w, H symmetric. Of it only what lies on and above the diagonal is multiplied, in stripes."""
    width = max(1, -(-len(hessian_II) // STRIPES))
    found_O = rows_OI.new_zeros(len(rows_OI))
    for start in range(0, len(hessian_II), width):
        part_Os, stripe = rows_OI[:, start : start + width], slice(start, start + width)
        product_Os = part_Os @ hessian_II[stripe, stripe]
        if start:
            product_Os = torch.addmm(product_Os, rows_OI[:, :start], hessian_II[:start, stripe], alpha=2)
        found_O += product_Os.mul_(part_Os).sum(1)
    return found_O


def _overflow() -> LlmosError:
    return LlmosError(
        "calibration produced values that are not finite", hint="evaluate the parent: its activations overflow"
    )


def _singular() -> LlmosError:
    return LlmosError("the Hessian of the calibration inputs cannot be inverted", hint="use more calibration samples")


def moved_target(weight_OI: Tensor, drift_II: Tensor | None, factor: Factor, share: float) -> Tensor:
    """What a layer whose inputs have drifted from X_ref to X should aim at to answer as before, `share` of the way:

    argmin_T |X_ref W^T - X T^T|^2 = W (1 + H^-1 D)^T with drift D = X^T (X_ref - X).
    """
    if share == 0 or drift_II is None:
        return weight_OI
    moved_OI: Tensor = weight_OI + factor.solve(drift_II @ weight_OI.T).mul_(share).T
    return moved_OI
