"""Wanda: in each row the weights go whose size times the norm of their input is smallest (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.patterns import Target, keep
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"norms"})


class Options(Section):
    pass


def prune(weight_OI: Tensor, statistics: Statistics, target: Target, options: Options) -> Tensor:
    return weight_OI.where(keep(weight_OI.abs() * statistics.norm_I, target, per="row"), 0)
