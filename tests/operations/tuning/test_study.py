"""Studies: opened by name, gone on with, trials that were cut off put back."""

import warnings

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.operations.tuning import study as studies
from llmos_cli.operations.tuning.space import read

SPACE = read({"x": {"low": 0.0, "high": 1.0}, "y": {"low": 1, "high": 3}})


def opened(storage, name="s", directions=None, pruner=None):
    return studies.open_study(
        name, storage, directions or {"loss": "minimize"}, RandomSampler(seed=0), pruner or NopPruner()
    )


@pytest.fixture
def storage(tmp_path):
    return studies.open_storage(f"sqlite:///{tmp_path / 'studies.sqlite'}")


def test_a_study_goes_on_by_name(storage):
    assert studies.told("s", storage) == 0
    first = opened(storage)
    first.tell(studies.ask(first, SPACE), 0.5)
    again = opened(storage)
    assert [trial.values for trial in studies.finished(again)] == [[0.5]]
    assert (studies.told("s", storage), studies.told("t", storage)) == (1, 0)


def test_other_objectives_need_another_study(storage):
    opened(storage)
    with pytest.raises(UsageError, match="searches for loss, not accuracy"):
        opened(storage, directions={"accuracy": "minimize"})


def test_other_choices_need_another_study(storage):
    study = opened(storage)
    study.tell(studies.ask(study, read({"width": [4, 8]})), 1.0)
    studies.check_space(study, read({"width": [4, 8]}))
    with pytest.raises(UsageError, match="width"):
        studies.check_space(study, read({"width": [4, 16]}))


def test_what_a_study_was_made_with_is_kept(storage):
    assert studies.kept("s", storage) == {}
    studies.keep(opened(storage), {"trials": 40})
    assert studies.kept("s", storage) == {"trials": 40}


@pytest.mark.parametrize("url", ["nonsense", "nosuchdatabase://host/db"])
def test_a_storage_that_is_none(url):
    with pytest.raises(UsageError, match="cannot open the storage"):
        studies.open_storage(url)


def test_a_storage_that_cannot_be_reached(tmp_path):
    with pytest.raises(LlmosError, match="does not answer") as caught:
        studies.open_storage(f"sqlite:///{tmp_path}/nowhere/studies.sqlite")
    assert caught.value.exit_code == 1


def test_a_password_is_not_told():
    told = studies.without_password("postgresql://me:secret@host/db")
    assert told == "postgresql://me@host/db"
    assert studies.without_password("sqlite:///a/b") == "sqlite:///a/b"


def test_a_trial_that_was_cut_off_is_tried_again_with_its_values(storage):
    study = opened(storage)
    cut_off = studies.ask(study, SPACE)
    studies.put_back(study, cut_off)
    assert studies.finished(study) == []
    again = studies.ask(study, SPACE)
    assert again.params == cut_off.params and again.number != cut_off.number
    study.tell(again, 1.0)
    assert [trial.number for trial in studies.finished(study)] == [again.number]


def test_what_a_dead_process_was_training_is_reclaimed(storage):
    study = opened(storage)
    mine, theirs = studies.ask(study, SPACE), studies.ask(study, SPACE)
    theirs.set_user_attr("process", {**theirs.user_attrs["process"], "pid": 2**22 + 1})
    studies.reclaim(study)
    states = {trial.number: trial.state for trial in study.trials}
    assert states[mine.number] == TrialState.RUNNING
    assert states[theirs.number] == TrialState.FAIL
    assert studies.ask(study, SPACE).params == theirs.params


def test_the_front_of_several_objectives():
    study = optuna.create_study(directions=["minimize", "maximize"])
    for values in ([1.0, 1.0], [2.0, 3.0], [2.0, 2.0], [0.5, 0.5]):
        study.tell(studies.ask(study, SPACE), values)
    assert [trial.values for trial in studies.front(study)] == [[0.5, 0.5], [1.0, 1.0], [2.0, 3.0]]


def test_ranking_puts_the_unfinished_last():
    study = optuna.create_study(direction="maximize")
    study.tell(studies.ask(study, SPACE), 0.2)
    study.tell(studies.ask(study, SPACE), state=TrialState.FAIL)
    study.tell(studies.ask(study, SPACE), 0.9)
    assert [trial.number for trial in studies.ranked(study, studies.finished(study))] == [2, 0, 1]


def test_importances_name_what_matters():
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    for _ in range(40):
        trial = studies.ask(study, SPACE)
        study.tell(trial, trial.params["x"] ** 2)
    shares = studies.importances(study)
    assert shares["x"] > 0.8 and sum(shares.values()) == pytest.approx(1.0)


def test_too_few_trials_say_nothing_of_importance():
    study = optuna.create_study()
    study.tell(studies.ask(study, SPACE), 1.0)
    assert studies.importances(study) == {}


def test_the_median_waits_for_the_first_trials_and_validations(storage):
    study = opened(storage, pruner=studies.pruner("median", startup=2))
    assert isinstance(study.pruner, MedianPruner)
    for value in (1.0, 2.0):
        trial = studies.ask(study, SPACE)
        for step in range(1, 11):
            trial.report(value, step)
            assert not trial.should_prune()
        study.tell(trial, value)
    bad = studies.ask(study, SPACE)
    decisions = []
    for step in range(1, 5):
        bad.report(9.0, step)
        decisions.append(bad.should_prune())
    assert decisions == [False, True, True, True]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_importances_of_several_objectives_are_towards_the_good_end(direction):
    """Only x tells the good from the best, only y the bad from the worst; what decides the good end is asked for."""
    sign = 1 if direction == "maximize" else -1
    study = optuna.create_study(directions=[direction, "minimize"], sampler=RandomSampler(seed=1))
    for _ in range(80):
        trial = studies.ask(study, SPACE)
        x, y = trial.params["x"], trial.params["y"]
        study.tell(trial, [sign * (x if x > 0.5 else -y), y])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        shares = studies.importances(study)
    assert shares["x"] > 0.8
    assert [warning for warning in told if issubclass(warning.category, UserWarning)] == []
