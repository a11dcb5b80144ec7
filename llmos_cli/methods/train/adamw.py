"""AdamW: Adam with weight decay apart from the gradient (Loshchilov and Hutter 2017, arXiv:1711.05101)."""

from __future__ import annotations

import torch
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.parameters import Parameters


class Options(Section):
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    """0.95 rather than the paper's 0.999: small runs have too few steps for a longer memory."""
    eps: float = Field(1e-8, gt=0)


def optimizer(
    parameters: Parameters, options: Options, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters.groups(weight_decay),
        lr=learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )
