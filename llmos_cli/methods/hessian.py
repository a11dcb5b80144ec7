"""A layer's damped Hessian as triangular factors, which SparseGPT and GPTQ walk column by column.

H = X^T X, [I, I] in fp32, over calibration inputs X [N, I]. Removing or rounding column j, row U[j, j:] of U^T U = H^-1 says how the
columns after it make up for it; column R[:j, j] of R R^T = H says how j itself is to make up for those before it. R = U^-1, and
costs a third as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmos_cli.errors import LlmosError
from llmos_cli.models.statistics import STRIPES


def alive(hessian_II: Tensor) -> Tensor:
    """[I], False where an input was zero all along: nothing is known of such a column, and nothing it does matters."""
    return hessian_II.diagonal() > 0


def damped(hessian_II: Tensor, share: float) -> Tensor:
    """H with dead inputs' diagonal at the mean of the living, and `share` of that mean added to all."""
    living_I = alive(hessian_II)
    diagonal_I = hessian_II.diagonal()
    mean = diagonal_I[living_I].mean() if living_I.any() else torch.ones((), device=hessian_II.device)
    damped_II = hessian_II.clone()
    damped_II.diagonal().add_(torch.where(living_I, 0, mean) + share * mean)
    return damped_II


def inverse_factor(hessian_II: Tensor, damping: float) -> Tensor:
    """U upper triangular with U^T U = (H + damping * mean(diag H) * 1)^-1; damping grows tenfold until it exists."""
    if not torch.isfinite(hessian_II).all():
        raise _overflow()
    upper_II: Tensor
    while damping <= 10:
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II.float(), damping))
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not failed and torch.isfinite(upper_II).all():
            return upper_II
        damping *= 10
    raise _singular()


def upper_factor(hessian_II: Tensor, damping: float, columns_I: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """R upper triangular with R R^T = H damped, its columns in the order `columns_I`, and that H in its own order; damping grows
    tenfold until R exists."""
    if not torch.isfinite(hessian_II).all():
        raise _overflow()
    order_I = torch.arange(len(hessian_II), device=hessian_II.device) if columns_I is None else columns_I
    backwards_I = order_I.flip(0)
    while damping <= 10:
        damped_II = damped(hessian_II.float(), damping)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II[backwards_I[:, None], backwards_I])
        if not failed and torch.isfinite(lower_II).all():
            return lower_II.flip(0, 1), damped_II
        damping *= 10
    raise _singular()


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


def moved_target(
    weight_OI: Tensor, drift_II: Tensor | None, upper_II: Tensor, share: float, columns_I: Tensor | None = None
) -> Tensor:
    """What a layer whose inputs have drifted from X_ref to X should aim at to answer as before, `share` of the way:

    argmin_T |X_ref W^T - X T^T|^2 = W (1 + H^-1 D)^T with drift D = X^T (X_ref - X); `upper_II` and `columns_I` as of `upper_factor`.
    """
    if share == 0 or drift_II is None:
        return weight_OI
    columns_I = torch.arange(len(upper_II), device=upper_II.device) if columns_I is None else columns_I
    drift_IO = (drift_II @ weight_OI.T)[columns_I]
    half_IO = torch.linalg.solve_triangular(upper_II, drift_IO, upper=True)
    move_IO = torch.linalg.solve_triangular(upper_II.T, half_IO, upper=False)
    moved_OI: Tensor = weight_OI + share * move_IO[columns_I.argsort()].T
    return moved_OI
