"""CMA-ES: adapts a Gaussian to the best trials, for numbers only; choices are drawn at random (Hansen 2016, The CMA Evolution Strategy: A Tutorial)."""

from __future__ import annotations

import importlib.util

from optuna.samplers import BaseSampler, CmaEsSampler
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.methods.tune import Search


class Options(Section):
    population: int | None = Field(None, ge=2)
    """Trials in a generation; 4 + 3 ln(number of parameters) when absent."""


def sampler(options: Options, search: Search) -> BaseSampler:
    if search.objectives > 1:
        raise UsageError("the cmaes sampler knows one objective only", hint="use the sampler `nsga2` or `tpe`")
    if importlib.util.find_spec("cmaes") is None:
        raise UsageError("the cmaes sampler needs the package cmaes", hint="pip install 'llmos-cli[cmaes]'")
    return CmaEsSampler(
        n_startup_trials=search.startup_trials,
        popsize=options.population,
        seed=search.draw,
        warn_independent_sampling=False,
    )
