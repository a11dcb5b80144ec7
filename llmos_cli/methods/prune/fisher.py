"""Fisher: the weights go whose absence would cost the loss least by its own curvature, w^2 F / 2 (Theis et al. 2018, arXiv:1801.05787)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.competition import shares
from llmos_cli.methods.patterns import Target
from llmos_cli.models.statistics import Need

NEEDS: frozenset[Need] = frozenset()


class Options(Section):
    scope: Literal["global", "layer"] = "global"
    """Where weights compete: `global` prunes the layers that matter less harder, `layer` all alike."""
    keep_at_least: float = Field(0.01, ge=0, lt=1)
    """Share of each layer's weights that stay whatever the others' worth, so that no layer is cut through."""


def score(weight_OI: Tensor, fisher_OI: Tensor, options: Options) -> Tensor:
    """Nats that a sample's loss rises by without each weight, others unmoved: second order around a minimum, the Hessian's diagonal
    being that of the empirical Fisher `fisher_OI`, the mean over samples of the squared gradient."""
    return weight_OI.square() * fisher_OI / 2


def allot(scores: Mapping[str, Tensor], target: Target, options: Options) -> dict[str, float]:
    """Each layer's sparsity: these scores are nats in every layer, and so compare."""
    if options.scope == "layer" or target.m:
        return dict.fromkeys(scores, target.sparsity)
    return shares(scores, target.sparsity, keep_at_least=options.keep_at_least)
