"""Adam: steps scaled by running means of the gradient and its square, decay added to the gradient (Kingma and Ba 2014, arXiv:1412.6980)."""

from __future__ import annotations

import torch
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.parameters import Parameters


class Options(Section):
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)


def optimizer(
    parameters: Parameters, options: Options, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters.groups(weight_decay),
        lr=learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )
