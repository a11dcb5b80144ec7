"""Adafactor: Adam whose second moments are kept as one row and one column per matrix (Shazeer and Stern 2018, arXiv:1804.04235)."""

from __future__ import annotations

import torch
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.parameters import Parameters


class Options(Section):
    beta2_decay: float = Field(-0.8, lt=0)
    """Exponent of the step in the second moments' memory (the paper's equation in section 7.2)."""
    eps: float = Field(1e-3, gt=0)
    """Smallest size of a parameter for the step relative to it (the paper's epsilon 2)."""
    clip: float = Field(1.0, gt=0)
    """Largest root mean square of an update (the paper's d)."""


def optimizer(
    parameters: Parameters, options: Options, *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(
        parameters.groups(weight_decay),
        lr=learning_rate,
        beta2_decay=options.beta2_decay,
        eps=(None, options.eps),
        d=options.clip,
    )
