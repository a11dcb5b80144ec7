"""NSGA-II: evolves a population towards the Pareto front of several objectives (Deb et al. 2002, A Fast and Elitist Multiobjective Genetic Algorithm)."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.tune import Search


class Options(Section):
    population: int | None = Field(None, ge=2)
    """Trials in a generation; the start-up trials (at least 4) when absent, so that a short search evolves at all."""
    crossover: float = Field(0.9, ge=0, le=1)
    """Chance that a child has two parents."""


def sampler(options: Options, search: Search) -> BaseSampler:
    return NSGAIISampler(
        population_size=options.population or max(4, search.startup_trials),
        crossover_prob=options.crossover,
        seed=search.draw,
    )
