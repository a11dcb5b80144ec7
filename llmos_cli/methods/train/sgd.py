"""SGD: plain gradient steps with Nesterov momentum (Sutskever et al. 2013, http://proceedings.mlr.press/v28/sutskever13.html)."""

from __future__ import annotations

import torch
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.parameters import Parameters


class Options(Section):
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    """Look ahead along the momentum; has no meaning without one."""


def optimizer(
    parameters: Parameters, options: Options, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters.groups(weight_decay),
        lr=learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        fused=True,
    )
