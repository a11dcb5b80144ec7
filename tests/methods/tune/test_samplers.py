"""Samplers: each finds the bottom of a bowl, and the grid visits every point once."""

import warnings

import optuna
import pytest

from llmos_cli import catalog
from llmos_cli.errors import UsageError
from llmos_cli.methods.tune import Search
from llmos_cli.operations.tuning.space import read

SPACE = read({"x": {"low": -2.0, "high": 2.0, "step": 0.5}, "y": [0, 1, 2]})


def search(*, seed=0, objectives=1, space=SPACE):
    return Search(
        seed=seed,
        told=0,
        startup_trials=4,
        objectives=objectives,
        grid={name: dimension.values() for name, dimension in space.items()},
    )


def make(name, **how):
    module = catalog.method("tune", name).load()
    return module.sampler(module.Options(), search(**how))


def trials(name, count, *, seed=0):
    """Values proposed by a sampler that minimises (x - 1)^2 + y."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=make(name, seed=seed))
    for _ in range(count):
        trial = study.ask({key: dimension.distribution() for key, dimension in SPACE.items()})
        study.tell(trial, (trial.params["x"] - 1) ** 2 + trial.params["y"])
    return study


@pytest.mark.parametrize("name", sorted(catalog.methods("tune")))
def test_every_sampler_finds_the_bottom(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = trials(name, 27).best_value
    assert best <= 0.25


@pytest.mark.parametrize("name", sorted(catalog.methods("tune")))
def test_a_seed_repeats_the_trials(name):
    first, again, other = (trials(name, 6, seed=seed) for seed in (0, 0, 1))
    assert [t.params for t in first.trials] == [t.params for t in again.trials]
    assert [t.params for t in first.trials] != [t.params for t in other.trials]


def test_the_grid_visits_every_point_once():
    points = {tuple(sorted(t.params.items())) for t in trials("grid", 27).trials}
    assert len(points) == 9 * 3


def test_the_grid_knows_its_size():
    assert catalog.method("tune", "grid").load().limit(search()) == 27


def test_the_grid_refuses_a_range_without_a_step():
    with pytest.raises(UsageError, match=r"every value of lr$"):
        make("grid", space=read({"lr": {"low": 0.0, "high": 1.0}, "y": [1]}))


def test_cmaes_refuses_several_objectives():
    with pytest.raises(UsageError, match="one objective"):
        make("cmaes", objectives=2)
