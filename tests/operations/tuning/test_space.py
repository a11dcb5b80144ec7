"""Search spaces: what a config may say, and what a trial's values set."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from llmos_cli.errors import UsageError
from llmos_cli.operations.tuning.space import Choices, Range, place_of, read, settings


def test_whole_numbers_stay_whole():
    space = read({"model.num_hidden_layers": {"low": 2, "high": 8, "step": 2}, "train.warmup": {"low": 0, "high": 0.5}})
    assert space["model.num_hidden_layers"].distribution() == IntDistribution(2, 8, step=2)
    assert space["train.warmup"].distribution() == FloatDistribution(0.0, 0.5)


def test_a_logarithmic_range():
    (dimension,) = read({"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}).values()
    assert dimension.distribution() == FloatDistribution(1e-4, 1e-2, log=True)
    assert dimension.values() is None


def test_every_value_of_a_stepped_range_and_of_choices():
    assert list(Range(2, 8, step=3).values() or ()) == [2, 5, 8]
    assert list(Range(0.0, 0.5, step=0.25).values() or ()) == [0.0, 0.25, 0.5]
    assert Choices(("adamw", "muon")).values() == ["adamw", "muon"]


def test_a_list_is_choices_and_scalars_stay_themselves():
    space = read({"train.optimizer": ["adamw", "muon"], "train.batch_size": {"choices": [8, 16]}})
    assert space["train.optimizer"].distribution() == CategoricalDistribution(["adamw", "muon"])
    assert settings(space, {"train.optimizer": "muon", "train.batch_size": 8}) == {
        "train.optimizer": "muon",
        "train.batch_size": 8,
    }


def test_a_mapping_sets_keys_that_belong_together():
    space = read({"model": {"choices": [{"arch": "llama", "hidden_size": 128}, {"arch": "gpt2", "n_embd": 64}]}})
    chosen = space["model"].values()[1]
    assert settings(space, {"model": chosen}) == {"model.arch": "gpt2", "model.n_embd": 64}


def test_a_continuous_value_has_four_digits():
    space = read({"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}})
    assert settings(space, {"train.learning_rate": 0.0027366090351870595}) == {"train.learning_rate": 0.002737}


def test_a_list_can_be_a_choice():
    space = read({"model.channels": {"choices": [[8, 16], [16, 32]]}})
    assert settings(space, {"model.channels": "[16, 32]"}) == {"model.channels": [16, 32]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "neither a range nor a list of choices"),
        ({"low": 1}, "neither a range nor a list of choices"),
        ({"low": 1, "high": 2, "hihg": 3}, "neither a range nor a list of choices"),
        ([], "has no choices"),
        ({"choices": "adamw"}, "has no choices"),
        ([1, 1], "lists a choice twice"),
        ({"low": "a", "high": 2}, "not a range of numbers"),
        ({"low": 2, "high": 1}, "low 2 is above high 1"),
        ({"low": 0, "high": 1, "log": True}, "cannot start at 0"),
        ({"low": 1, "high": 4, "step": 1, "log": True}, "goes with no log"),
        ({"low": 1, "high": 4, "step": 0}, "above 0"),
    ],
)
def test_nonsense_names_its_key(value, says):
    with pytest.raises(UsageError, match=says) as caught:
        read({"train.learning_rate": value})
    assert "tune.space.train.learning_rate" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"train": {"lr": 1e-3, "optimizer": "muon"}}, {"train.lr": 1e-3, "train.optimizer": "muon"}),
        ({"train": {"lr": 1.0, "optimizer": "muon"}}, None),
        ({"train": {"lr": 1e-3, "optimizer": "sgd"}}, None),
        ({"train": {"lr": 1e-3}}, None),
        ({}, None),
    ],
)
def test_where_a_config_stands_in_a_space(config, place):
    space = read({"train.lr": {"low": 1e-4, "high": 1e-2}, "train.optimizer": ["adamw", "muon"]})
    assert place_of(space, config) == place


def test_between_the_steps_is_outside():
    space = read({"x": {"low": 2, "high": 8, "step": 3}})
    assert (place_of(space, {"x": 5}), place_of(space, {"x": 4})) == ({"x": 5}, None)


def test_an_empty_space_is_an_error():
    with pytest.raises(UsageError, match="empty"):
        read({})
