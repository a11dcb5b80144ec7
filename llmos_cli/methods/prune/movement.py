"""Movement: while the model trains, the weights go that training moves towards zero; others come back (Sanh et al. 2020, arXiv:2005.07683)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.competition import shares
from llmos_cli.methods.patterns import Target
from llmos_cli.models.statistics import Need

NEEDS: frozenset[Need] = frozenset()

TINY = 1e-30
PERSISTENT = 5.0
"""Score of a weight of mean movement that moves one way in every step, beside 1 for a weight of mean size."""


class Options(Section):
    steps: int = Field(300, ge=1)
    """Optimizer steps in which the mask is found, with the rates of the `heal` section; `--heal` comes after them."""
    rising: float = Field(0.7, gt=0, le=1)
    """Share of the steps in which the sparsity rises to its end; in the rest weights change places."""
    size: float = Field(1.0, ge=0)
    """How much a weight's size counts at the start beside how it moves later; 0 is the paper's, which wants thousands of steps."""
    scope: Literal["global", "layer"] = "layer"
    """Where weights compete: within each layer, or over the whole model."""
    keep_at_least: float = Field(0.01, ge=0, lt=1)
    """Share of each layer's weights that stay whatever the others' scores, so that no layer is cut through."""


def start(weight_OI: Tensor, options: Options) -> Tensor:
    """Scores before the first step: sizes, in units of their mean, as nothing is known of movements yet."""
    size_OI = weight_OI.abs()
    return options.size * size_OI / size_OI.mean().clamp_min(TINY)


def moved(score_OI: Tensor, weight_OI: Tensor, gradient_OI: Tensor, options: Options) -> Tensor:
    """Scores after a step (equation 4 of the paper): lower where the step makes a weight smaller. The gradient is that of the weight
    in use, and reaches those that are masked too (straight through), which is how they come back.

    A step's movements are in units of their mean, and all of them together as much as the steps allow: so they weigh alike with
    large gradients and small, and beside the sizes.
    """
    move_OI = weight_OI * gradient_OI
    return score_OI - move_OI * (PERSISTENT / options.steps / move_OI.abs().mean().clamp_min(TINY))


def at(progress: float, target: Target, options: Options) -> Target:
    """The target after a share `progress` of the steps: cubic, fast while weights are many (Zhu & Gupta 2017, arXiv:1710.01878)."""
    share = 1 - (1 - min(1.0, progress / options.rising)) ** 3
    left = target.m - round(share * (target.m - target.n))
    return replace(target, sparsity=share * target.sparsity, n=left)


def allot(scores: Mapping[str, Tensor], target: Target, options: Options) -> dict[str, float]:
    if options.scope == "layer" or target.m:
        return dict.fromkeys(scores, target.sparsity)
    lowest = min(float(score.min()) for score in scores.values())
    raised = {name: score - lowest for name, score in scores.items()}
    return shares(raised, target.sparsity, keep_at_least=options.keep_at_least)
