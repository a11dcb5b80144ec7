"""`llmos tune`: trials are runs, the study goes on by name, the best is written into the config and can be taken back."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.config import resolve
from llmos_cli.operations.tuning.plan import make_plan
from llmos_cli.operations.tuning.search import going_on
from llmos_cli.operations.tuning.trial import carry_out_trial
from llmos_cli.operations.tuning.workers import Job, Stopped, Trained, Worker

SPACE = """\
tune:
  space:
    train.learning_rate: {low: 1e-4, high: 1e-1, log: true}
    model.hidden_size: [4, 8, 16]
  max_steps: 6
"""


@pytest.fixture
def searched(empty: Workspace) -> Workspace:
    (empty.configs / "tune.yaml").write_text(SPACE)
    (empty.configs / "train.yaml").write_text(
        "# how we train\n"
        "model: {arch: mlp, hidden_size: 4}  # small\n"
        'data: {task: image-classification, source: "builtin:digits", max_samples: 128, max_eval_samples: 64}\n'
        "train:\n  max_steps: 3\n  learning_rate: 1e-3   # to be tuned\n  batch_size: 16\n"
    )
    return empty


def test_a_search_from_start_to_undo(searched: Workspace, llmos):
    before = (searched.configs / "train.yaml").read_text()
    ran = llmos(
        "tune", "--trials", 4, "--jobs", 2, "--sampler", "random", "--apply", "--json", "-s", "tune.pruner=none"
    )
    assert ran.code == 0, ran.err
    result = ran.json
    trials = result["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 4
    assert result["objectives"] == {"accuracy": "maximize"}
    assert [t["values"]["accuracy"] for t in trials] == sorted((t["values"]["accuracy"] for t in trials), reverse=True)
    assert result["front"] == [trials[0]["number"]]
    assert sum(result["importances"].values()) == pytest.approx(1.0) or result["importances"] == {}

    first = next(trial for trial in trials if trial["number"] == 0)
    assert first["settings"] == {"train.learning_rate": 0.001, "model.hidden_size": 4}  # what the config says

    for trial in trials:
        record = searched.runs.find(trial["run"])
        assert (record.operation, record.status, record.checkpoint) == ("trial", "done", trial["checkpoint"])
        made = searched.manifest(trial["checkpoint"]).made
        assert made.config["train"]["learning_rate"] == trial["settings"]["train.learning_rate"]
        assert made.config["model"]["hidden_size"] == trial["settings"]["model.hidden_size"]
        assert (made.config["train"]["max_steps"], made.config["train"]["compile"]) == (6, "off")
        assert searched.metrics(trial["checkpoint"])["accuracy", "validation"].value == trial["values"]["accuracy"]
    assert searched.head().checkpoint is None

    best = trials[0]["settings"]
    assert result["applied"] == best
    after = (searched.configs / "train.yaml").read_text()
    assert after == before.replace("1e-3", str(best["train.learning_rate"])).replace(
        "hidden_size: 4", f"hidden_size: {best['model.hidden_size']}"
    )
    assert llmos("undo").code == 0
    assert (searched.configs / "train.yaml").read_text() == before

    again = llmos("tune", "--trials", 4, "--sampler", "random", "--json", "-s", "tune.pruner=none")
    assert again.json["trials"] == trials
    table = llmos("tune", "--trials", 4, "--sampler", "random", "-s", "tune.pruner=none").out.splitlines()
    assert table[0].split()[:3] == ["trial", "state", "accuracy"] and len([r for r in table if " complete " in r]) == 4


def space(ws: Workspace, text: str) -> None:
    """Search this instead."""
    (ws.configs / "tune.yaml").write_text(f"tune: {{max_steps: 6, space: {text}}}\n")


def test_several_objectives_and_points_that_fail(searched: Workspace, llmos):
    """A grid over an architecture: the front is of what could be built, the rest says why not."""
    space(searched, "{model.hidden_size: [4, 16], model.num_hidden_layers: [1, -1]}")
    ran = llmos(
        "tune", "--sampler", "grid", "--json",
        "-s", "tune.objectives={accuracy: maximize, parameters: minimize}",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    trials = ran.json["trials"]
    assert sorted(trial["state"] for trial in trials) == ["complete", "complete", "failed", "failed"]
    assert all(trial["reason"] for trial in trials if trial["state"] == "failed")
    front = [trial for trial in trials if trial["number"] in ran.json["front"]]
    smallest = min((t for t in trials if t["values"]), key=lambda t: t["values"]["parameters"])
    assert smallest in front
    assert smallest["values"]["parameters"] == 64 * 4 + 4 + 4 * 10 + 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "the search space is empty"),
        ("{train.learning_rat: [1, 2]}", "learning_rat"),
        ("{train.learning_rate: [-1.0]}", "learning_rate"),
        ("{train.learning_rate: 3}", "neither a range nor a list of choices"),
    ],
)
def test_a_space_that_is_none(searched: Workspace, llmos, text, says):
    space(searched, text)
    ran = llmos("tune")
    assert ran.code == 2
    assert says in ran.err and "Traceback" not in ran.err
    assert not list((searched.root / "runs").iterdir())


SEVERAL = ("-s", "tune.objectives={accuracy: maximize, size: minimize}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sampler", "tpf"], "did you mean 'tpe'"),
        (["--sampler", "grid"], "cannot list every value of train.learning_rate"),
        ([*SEVERAL, "-s", "tune.pruner=median"], "the pruner median cannot compare trials by several objectives"),
        ([*SEVERAL, "--apply"], "--apply needs one best trial"),
        ([*SEVERAL, "--sampler", "cmaes"], "one objective only"),
        (["--storage", "nonsense"], "cannot open the storage"),
        (["--trials", "0"], "trials"),
        (["-s", "tune.objectives={accuracy: maximize, nonsense: minimize}"], "no trial measures nonsense"),
        (["-s", "tune.objectives={accurcy: maximize}"], "accuracy, compression, ece, latency_best"),
    ],
)
def test_what_cannot_be_searched(searched: Workspace, llmos, arguments, says):
    ran = llmos("tune", *arguments)
    assert ran.code == 2
    assert says in ran.err and "Traceback" not in ran.err
    assert not list((searched.root / "runs").iterdir())


def searched_once(llmos, *arguments) -> None:
    """A study `kept` of one trial, made otherwise than configs/tune.yaml says."""
    ran = llmos(
        "tune", "--study", "kept", "--trials", 1, "--sampler", "random", "--json", *arguments,
        "-s", "tune.space={model.hidden_size: [4, 8]}", "-s", "tune.max_steps=2", "-s", "tune.pruner=none",
    )  # fmt: skip
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_a_study_goes_on_as_it_was_made(searched: Workspace, llmos):
    searched_once(llmos)
    by_name = llmos("tune", "--study", "kept", "--dry-run", "--json").json
    assert by_name["space"] == {"model.hidden_size": "4, 8"}
    assert (by_name["sampler"], by_name["pruner"], by_name["trials"]) == ("random", "none", 1)
    assert by_name["fixed"] == {"train.max_steps": 2, "train.compile": "off"}

    more = llmos("tune", "--study", "kept", "--trials", 2, "--json")
    assert more.code == 0, more.err
    assert [trial["state"] for trial in more.json["trials"]] == ["complete"] * 2
    assert [set(trial["settings"]) for trial in more.json["trials"]] == [{"model.hidden_size"}] * 2
    for trial in more.json["trials"]:
        assert searched.manifest(trial["checkpoint"]).made.config["train"]["max_steps"] == 2
    assert llmos("tune", "--study", "kept", "--dry-run", "--json").json["trials"] == 2


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("tune.space={model.hidden_size: [4, 16]}", "study kept searches model.hidden_size: 4, 8"),
        ("tune.objectives={loss: minimize}", "study kept searches for maximize accuracy, not minimize loss"),
    ],
)
def test_what_cannot_change_within_a_study(searched: Workspace, llmos, setting, says):
    searched_once(llmos)
    ran = llmos("tune", "--study", "kept", "--trials", 6, "-s", setting)
    assert ran.code == 2 and says in ran.err and "another name" in ran.err, ran.err


def test_a_study_named_in_the_config_follows_the_config(searched: Workspace, llmos):
    """Then the file that names it is what the user edits: its number of trials counts, its space must be the study's."""
    searched_once(llmos)
    (searched.configs / "tune.yaml").write_text(
        "tune: {study: kept, trials: 7, space: {model.hidden_size: [4, 8]}}\n",
    )
    assert llmos("tune", "--dry-run", "--json").json["trials"] == 7
    (searched.configs / "tune.yaml").write_text("tune: {study: kept, space: {model.hidden_size: [4, 16]}}\n")
    assert llmos("tune").code == 2


def test_the_way_to_go_on_names_the_storage_without_its_password(searched: Workspace):
    searched_by = resolve(searched, "tune", flags={"tune.study": "a b"})
    plan = make_plan(searched, searched_by, apply=False)
    assert going_on(plan) == "`llmos tune --study 'a b'` goes on"
    elsewhere = replace(plan, given_storage="postgresql://me:secret@host/db")
    assert (
        going_on(elsewhere)
        == "`llmos tune --study 'a b' --storage postgresql://me@host/db` goes on (with the password in the URL)"
    )


def job(searched: Workspace, **settings) -> Job:
    values = {"train.max_steps": 6, "train.compile": "off", **{k.replace("__", "."): v for k, v in settings.items()}}
    return Job(0, values, ["accuracy"], prunable=True)


def test_a_trial_is_told_apart_by_its_validations(searched: Workspace):
    heard = []
    message = carry_out_trial(searched, job(searched), lambda reported: heard.append(reported) or True)
    assert isinstance(message, Trained)
    assert [reported.step for reported in heard] == list(range(1, len(heard) + 1)) and len(heard) == 6
    assert message.values == [searched.metrics(message.checkpoint)["accuracy", "validation"].value]


def test_a_pruned_trial_is_a_run_that_is_done_and_made_nothing(searched: Workspace):
    message = carry_out_trial(searched, job(searched), lambda reported: reported.step < 3)
    assert isinstance(message, Stopped) and message.pruned and "pruned at validation 3" in message.reason
    record = searched.runs.find(message.run)
    assert (record.status, record.checkpoint) == ("done", "")
    assert not list((record.path).glob("state/*"))


def test_a_point_that_cannot_be_built_is_a_result_too(searched: Workspace):
    message = carry_out_trial(searched, job(searched, model__num_hidden_layers=-1), lambda reported: True)
    assert isinstance(message, Stopped) and not message.pruned and message.reason


def test_a_worker_that_died_says_of_what(searched: Workspace):
    worker = Worker(searched.root, 1)
    worker.begin(Job(7, 5, ["accuracy"], prunable=False))  # settings that are none: nothing that a trial expects
    message = worker.receive()
    worker.stop()
    assert message == Stopped(7, "its process ended with code 1: TypeError: 'int' object is not iterable")


def test_an_objective_that_nothing_measures(searched: Workspace):
    asked = replace(job(searched), objectives=["speed"])
    message = carry_out_trial(searched, asked, lambda reported: True)
    assert isinstance(message, Stopped) and "no trial measures speed" in message.reason


@pytest.mark.slow
def test_ctrl_c_and_on_again(searched: Workspace, llmos):
    program = "from llmos_cli.__main__ import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "tune", "--trials", "2", "--study", "s", "-s", "tune.max_steps=1000000"],
        cwd=searched.root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _until(lambda: any("trial" in r.operation and r.progress for r in searched.runs.list()), process)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "after 0 of 2 trials" in error and "llmos tune --study s" in error and "Traceback" not in error
    (trial,) = [r for r in searched.runs.list() if r.operation == "trial"]
    assert trial.status in ("interrupted", "terminated")

    ran = llmos("tune", "--study", "s", "-s", "tune.max_steps=6", "--json")
    assert ran.code == 0, ran.err
    assert [t["state"] for t in ran.json["trials"]] == ["complete"] * 2
    cut_off = _setting(searched, trial.id)
    assert cut_off in [t["settings"]["train.learning_rate"] for t in ran.json["trials"]]


def _until(there, process):
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no trial began"
        time.sleep(0.2)


def _setting(ws, run):
    import yaml

    return yaml.safe_load((ws.runs.find(run).path / "config.yaml").read_text())["train"]["learning_rate"]
