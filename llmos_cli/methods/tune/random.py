"""Random: every value drawn on its own, hard to beat with few trials (Bergstra & Bengio 2012, Random Search for Hyper-Parameter Optimization)."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from llmos_cli.core.section import Section
from llmos_cli.methods.tune import Search


class Options(Section):
    pass


def sampler(options: Options, search: Search) -> BaseSampler:
    return RandomSampler(seed=search.draw)
