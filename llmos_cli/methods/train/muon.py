"""Muon: momentum made orthogonal for matrices, AdamW for the rest (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The update of a weight matrix is its momentum with every singular value pushed to about one, so that rare directions
learn as fast as common ones. Its length is matched to AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4), so one
learning rate serves matrices, embeddings, norms and biases.

torch.optim.Muon exists; it always computes in bf16, which is several times slower than fp32 on processors without bf16
arithmetic, one matrix at a time, and takes matrices only.

Shapes: K matrices of the same shape, O outputs, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.adamw import adamw

from llmos_cli import device
from llmos_cli.core.section import Section
from llmos_cli.methods.parameters import Parameters


class Options(Section):
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    iterations: int = Field(5, ge=1, le=12)
    """Newton-Schulz iterations: each costs three products of a matrix with itself."""
    scale: float = Field(0.2, gt=0)
    """Root mean square of a matrix's update per unit of learning rate; 0.2 is AdamW's."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Of AdamW, for embeddings, output heads, norms and biases."""
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


def optimizer(
    parameters: Parameters, options: Options, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    matrices = [{"params": parameters.matrices, "weight_decay": weight_decay, "orthogonal": True}]
    others = [
        {"params": parameters.heads, "weight_decay": weight_decay, "orthogonal": False},
        {"params": parameters.embeddings + parameters.vectors, "weight_decay": 0.0, "orthogonal": False},
    ]
    groups = [group for group in matrices + others if group["params"]]
    return Muon(groups, learning_rate=learning_rate, options=options)


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal` hold matrices (or convolutions, as [O, rest]); the others are stepped by AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, learning_rate: float, options: Options) -> None:
        defaults = {
            "lr": learning_rate,
            "momentum": options.momentum,
            "nesterov": options.nesterov,
            "iterations": options.iterations,
            "scale": options.scale,
            "beta1": options.beta1,
            "beta2": options.beta2,
            "eps": options.eps,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if group["orthogonal"]:
                for same_shape in _by_shape(with_gradient):
                    self._step_matrices(same_shape, group)
            else:
                self._step_adamw(with_gradient, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One stack per shape: a batched product is far quicker than K small ones."""
        gradient_KOI = torch.stack([_gradient(p).flatten(1) for p in parameters])
        momentum_KOI = torch.stack([self._momentum(p).flatten(1) for p in parameters])
        momentum_KOI = momentum_KOI.lerp(gradient_KOI, 1 - group["momentum"])
        aim_KOI = gradient_KOI.lerp(momentum_KOI, group["momentum"]) if group["nesterov"] else momentum_KOI
        update_KOI = orthogonalized(aim_KOI, group["iterations"], dtype=device.compute_dtype(aim_KOI.device))
        length = group["lr"] * group["scale"] * math.sqrt(max(update_KOI.shape[-2:]))
        for parameter, momentum_OI, update_OI in zip(parameters, momentum_KOI, update_KOI, strict=True):
            self.state[parameter]["momentum"].copy_(momentum_OI.view_as(parameter))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update_OI.view_as(parameter), alpha=-length)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._adamw_state(p) for p in parameters]
        adamw(  # type: ignore[no-untyped-call]
            parameters,
            [_gradient(p) for p in parameters],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _adamw_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def orthogonalized(matrix_KOI: Tensor, iterations: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T of each matrix's singular value decomposition U S V^T, roughly: singular values end up between 0.7 and 1.2.

    The quintic iteration and its coefficients are Jordan's: they are the steepest at zero that stay bounded, and do not
    converge to one exactly, which does not matter here. `dtype`: of the arithmetic; bf16 is precise enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix_KOI.shape[-2] <= matrix_KOI.shape[-1]
    x_KMN = (matrix_KOI if wide else matrix_KOI.mT).to(dtype)
    x_KMN = x_KMN / (x_KMN.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram_KMM = x_KMN @ x_KMN.mT
        polynomial_KMM = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
        x_KMN = torch.baddbmm(x_KMN, polynomial_KMM, x_KMN, beta=a)
    return (x_KMN if wide else x_KMN.mT).to(matrix_KOI.dtype)


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    shapes: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    return list(shapes.values())


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
