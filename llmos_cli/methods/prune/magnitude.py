"""Magnitude: the smallest weights go, compared over the whole model or within each layer (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.competition import shares
from llmos_cli.methods.patterns import Target, keep
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset()


class Options(Section):
    scope: Literal["global", "layer"] = "global"
    """Where weights compete: `global` prunes the layers of small weights harder, `layer` all alike."""
    keep_at_least: float = Field(0.01, ge=0, lt=1)
    """Share of each layer's weights that stay whatever the others' sizes, so that no layer is cut through."""


def prune(weight_OI: Tensor, statistics: Statistics, target: Target, options: Options) -> Tensor:
    return weight_OI.where(keep(weight_OI.abs(), target, per="layer"), 0)


def allot(weights: Mapping[str, Tensor], target: Target, options: Options) -> dict[str, float]:
    """Each layer's sparsity where one threshold is drawn through all of them: together exactly `target.sparsity`."""
    if options.scope == "layer" or target.m:
        return dict.fromkeys(weights, target.sparsity)
    return shares(weights, target.sparsity, keep_at_least=options.keep_at_least)
