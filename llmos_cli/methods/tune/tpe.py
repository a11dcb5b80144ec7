"""TPE: models the density of good and of bad trials and draws where their ratio is best (Bergstra et al. 2011, Algorithms for Hyper-Parameter Optimization)."""

from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler
from pydantic import Field

from llmos_cli.core.section import Section
from llmos_cli.methods.tune import Search


class Options(Section):
    candidates: int = Field(24, ge=1)
    """Draws among which the best ratio wins."""


def sampler(options: Options, search: Search) -> BaseSampler:
    return TPESampler(
        n_startup_trials=search.startup_trials,
        n_ei_candidates=options.candidates,
        seed=search.draw,
    )
