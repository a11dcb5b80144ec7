"""The damped inverse of a layer's Hessian, as GPTQ and SparseGPT walk it: an upper triangular factor.

H = X^T X, [I, I] in fp32, over calibration inputs X [N, I]. Both methods remove or round one column after another; the row
U[j, j:] of U^T U = H^-1 says how the columns after j make up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmos_cli.errors import LlmosError


def alive(hessian_II: Tensor) -> Tensor:
    """[I], False where an input was zero all along: nothing is known of such a column, and nothing it does matters."""
    return hessian_II.diagonal() > 0


def damped(hessian_II: Tensor, share: float) -> Tensor:
    """H with dead inputs' diagonal at the mean of the living, and `share` of that mean added to all."""
    living_I = alive(hessian_II)
    diagonal_I = hessian_II.diagonal()
    mean = diagonal_I[living_I].mean() if living_I.any() else torch.ones((), device=hessian_II.device)
    raised_I: Tensor = torch.where(living_I, 0, mean) + share * mean
    return hessian_II + torch.diag(raised_I)


def inverse_factor(hessian_II: Tensor, damping: float) -> Tensor:
    """U upper triangular with U^T U = (H + damping * mean(diag H) * 1)^-1; damping grows tenfold until it exists."""
    if not torch.isfinite(hessian_II).all():
        raise LlmosError(
            "calibration produced values that are not finite", hint="evaluate the parent: its activations overflow"
        )
    upper_II: Tensor
    while damping <= 10:
        lower_II, failed = torch.linalg.cholesky_ex(damped(hessian_II.float(), damping))
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
        if not failed and torch.isfinite(upper_II).all():
            return upper_II
        damping *= 10
    raise LlmosError("the Hessian of the calibration inputs cannot be inverted", hint="use more calibration samples")


def moved_target(weight_OI: Tensor, drift_II: Tensor | None, hessian_II: Tensor, share: float) -> Tensor:
    """What a layer whose inputs have drifted from X_ref to X should aim at to answer as before, `share` of the way:

    argmin_T |X_ref W^T - X T^T|^2 = W (1 + H^-1 D)^T with drift D = X^T (X_ref - X).
    """
    if share == 0 or drift_II is None:
        return weight_OI
    move_II: Tensor = torch.linalg.solve(hessian_II, drift_II)
    return weight_OI + share * (weight_OI @ move_II.T)
