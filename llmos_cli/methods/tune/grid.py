"""Grid: every combination of the listed values once, in shuffled order; ranges need a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optuna import Study
from optuna.samplers import BaseSampler, GridSampler
from optuna.trial import FrozenTrial, TrialState

from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.methods.tune import Search


class Options(Section):
    pass


def sampler(options: Options, search: Search) -> BaseSampler:
    endless = [name for name, values in search.grid.items() if values is None]
    if endless:
        raise UsageError(
            f"the grid sampler cannot list every value of {', '.join(endless)}",
            hint="give the range a `step` or write `choices`, or use the sampler `tpe`",
        )
    return _Grid({name: list(values or ()) for name, values in search.grid.items()}, seed=search.seed)


def limit(search: Search) -> int:
    """Trials after which nothing new is left."""
    return math.prod(len(values or ()) for values in search.grid.values())


class _Grid(GridSampler):
    """Optuna's own calls `study.stop()` at the end, which is an error outside its `optimize()`; `limit` ends ours."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        pass
