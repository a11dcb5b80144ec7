"""why: trainings of which it is known what changed the metric, told apart by checkpoints that are there or by running again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmos_cli.core import trust
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Metric
from llmos_cli.operations.attribution import noise
from llmos_cli.operations.attribution.question import WhyOptions
from llmos_cli.operations.attribution.recipes import identity, pair
from llmos_cli.operations.attribution.walk import walk
from llmos_cli.operations.environment import SOURCE
from llmos_cli.operations.tag import tag
from llmos_cli.operations.why import why
from tests.operations.conftest import copied
from tests.operations.test_own_model import PICTURES

DIGITS = """\
model: {arch: mlp, hidden_size: 16}
data: {task: image-classification, source: "builtin:digits", max_samples: 256, max_eval_samples: 64}
train: {max_steps: 120, batch_size: 16, learning_rate: 5e-4}
"""
CSV = "data: {task: text-classification, source: rows.csv, sequence_length: 16}\nmodel: {arch: bag}\ntrain: {max_steps: 6}\n"
LR, SMOOTH = "train.learning_rate=0.02", "train.label_smoothing=0.001"
OTHER = ("data.max_samples=64", "data.max_eval_samples=96")
TRAINED: dict[str, tuple[str, ...]] = {
    "a": (),
    **{f"seed{seed}": (f"seed={seed}",) for seed in (1, 2, 3, 4)},
    "lr": (LR,),
    "both": (LR, SMOOTH),
    "other": OTHER,
    "all": (*OTHER, LR),
}
WHY = ("why", "--metric", "loss", "-q")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory, new_workspace) -> Path:
    ws = new_workspace(tmp_path_factory.mktemp("why") / "workspace", "image-classification")
    (ws.configs / "train.yaml").write_text(DIGITS)
    for name, sets in TRAINED.items():
        trained(ws, name, *sets)
    why(ws, "a", "both", WhyOptions("loss", runs=0), emit=lambda event: None)  # what is measured once is remembered
    return ws.root


@pytest.fixture
def made(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return copied(_made, tmp_path, monkeypatch)


def trained(ws: Workspace, name: str, *sets: str) -> None:
    from llmos_cli.operations.config import resolve
    from llmos_cli.operations.train import train

    tag(ws, name, train(ws, None, resolve(ws, "train", sets=sets), emit=lambda event: None).checkpoint)


def answer(llmos, *words: str) -> dict:
    told = llmos(*WHY, *words, "--json")
    assert told.code == 0, told.err
    return told.json


def causes(told: dict) -> list[tuple[str, list[str], bool | None]]:
    return [(each["kind"], [change["key"] for change in each["changes"]], each["noise"]) for each in told["causes"]]


def test_only_the_learning_rate_changed(made: Workspace, llmos):
    """Two checkpoints with other seeds are there, and enough: nothing is run."""
    before = sorted(path.name for path in made.checkpoints.iterdir())
    told = answer(llmos, "a", "lr", "--runs", "0")
    assert (told["verdict"], causes(told)) == ("explained", [("config", ["train.learning_rate"], False)])
    assert told["change"] < 0 and told["low"] <= told["change"] <= told["high"] < 0
    assert len(told["seeds"]["results"]) == 3 and 0 < told["seeds"]["limit"] < -told["change"]
    assert {run["how"] for run in told["runs"]} == {"found"}
    assert sorted(path.name for path in made.checkpoints.iterdir()) == before
    assert not list((made.dot / "tmp").iterdir()) and len(made.runs.list()) == len(TRAINED)


def test_two_keys_of_which_one_counts(made: Workspace, llmos):
    told = answer(llmos, "a", "both", "--runs", "0")
    assert causes(told) == [
        ("config", ["train.learning_rate"], False),
        ("config", ["train.label_smoothing"], True),
    ]
    assert sum(each["effect"] for each in told["causes"]) == pytest.approx(told["change"])
    assert told["answer"].startswith("train.learning_rate: -")
    plain = llmos(*WHY, "a", "both", "--runs", "0")
    assert (
        "two runs that differ in the seed alone differ by up to" in plain.out
        and "3 made so in this workspace" in plain.out
    )


def test_data_and_config_apart(made: Workspace, llmos):
    """The samples of both are B's; that A was measured on its own is a line of its own, and all lines add up to what people saw."""
    told = answer(llmos, "a", "all", "--runs", "0")
    assert [run["what"] for run in told["runs"]][:2] == ["a's recipe with seed 1", "a's recipe with seed 2"]
    found = causes(told)
    assert [kind for kind, _, _ in found] == ["test", "data", "config"]
    assert found[1][1] == ["data.max_samples", "data.max_eval_samples"]
    assert found[2] == ("config", ["train.learning_rate"], False)
    seen = [made.metrics(made.resolve(name))["loss", "test"].value for name in ("a", "all")]
    assert (told["before"]["value"], told["after"]["value"]) == pytest.approx(seen)
    assert sum(each["effect"] for each in told["causes"]) == pytest.approx(seen[1] - seen[0])


def test_only_the_seed_changed(made: Workspace, llmos):
    told = answer(llmos, "a", "seed1")
    assert (told["verdict"], causes(told), told["runs"]) == ("seed", [("seed", ["seed"], True)], [])
    assert told["answer"] == "only the seed differs: noise of the seed"


def test_what_is_no_more_than_noise_is_not_told_apart(made: Workspace, llmos):
    trained(made, "smooth", SMOOTH, "train.weight_decay=0.011")
    told = answer(llmos, "a", "smooth", "--runs", "0")
    assert told["verdict"] in ("seed", "samples")
    assert causes(told) == [("config", ["train.label_smoothing", "train.weight_decay"], True)] or causes(told) == [
        ("config", ["train.weight_decay", "train.label_smoothing"], True)
    ]


def test_what_is_the_same_is_said_at_once(made: Workspace, llmos):
    trained(made, "again")
    for names in (("a", "a"), ("a", "again")):
        assert llmos(*WHY, *names).out == "every byte of the two is the same: there is nothing to explain\n"


def test_how_far_seeds_move_it_is_said_to_be_unknown(made: Workspace, llmos):
    """Of this recipe there is one checkpoint."""
    trained(made, "long", "train.max_steps=121")
    told = answer(llmos, "long", "lr", "--runs", "0")
    assert (told["seeds"]["limit"], told["seeds"]["reason"]) == (None, "--runs was reached")
    assert causes(told) == [("config", ["train.max_steps"], None), ("config", ["train.learning_rate"], None)]
    assert "perhaps noise" in llmos(*WHY, "long", "lr", "--runs", "0").out


def test_what_cannot_be_asked(made: Workspace, llmos):
    unknown = llmos("why", "a", "lr", "--metric", "bits", "--runs", "0", "-q")
    assert unknown.code == 2 and "--metric is one of accuracy, macro_f1, ece, loss" in unknown.err
    planned = llmos("why", "a", "lr", "--metric", "bits", "--dry-run", "-q")
    assert planned.code == 2 and planned.err.splitlines()[0] == unknown.err.splitlines()[0]
    assert llmos("why", "a", "nothing").code == 4


def forged(ws: Workspace, name: str, of: str, factor: float, measured: float | None = None, **environment) -> None:
    """A checkpoint as another version would have made it: weights a little otherwise, and a loss that it measured."""
    base = ws.checkpoint(of)
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        for file in base.manifest.tree:
            shutil.copyfile(base.path / file, staged / file)
        for file in staged.glob("*.safetensors"):
            save_file({key: value * factor for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
        recorded = {k: v for k, v in {**base.manifest.made.environment, **environment}.items() if v is not None}
        found = run.commit(staged, replace(base.manifest.made, environment=recorded)).id
        if measured is not None:
            run.emit(Metric("loss", measured, "test", checkpoint=found))
    tag(ws, name, found)


def test_code_and_config_apart(made: Workspace, llmos):
    """What another llmos made lies before A's recipe as it is made today, which is there."""
    forged(made, "old", "a", 0.5, llmos_source="0" * 64)
    told = answer(llmos, "old", "lr", "--runs", "0")
    assert [(kind, keys) for kind, keys, _ in causes(told)] == [
        ("code", ["llmos_source"]),
        ("config", ["train.learning_rate"]),
    ]
    assert causes(told)[1][2] is False
    alone = answer(llmos, "old", "a", "--runs", "0")
    assert [kind for kind, _, _ in causes(alone)] == ["code"]
    assert {run["how"] for run in [*told["runs"], *alone["runs"]]} == {"found"}
    plain = llmos("diff", "old", "a", "--no-tensors", "-q").out
    assert f"llmos_source  000000000000  {SOURCE[:12]}" in plain


def test_which_source_made_it_is_not_recorded(made: Workspace, llmos):
    """By manifests of before it was: that is no difference, and said where two are compared."""
    forged(made, "early", "a", 0.5, llmos_source=None)
    told = answer(llmos, "early", "a", "--runs", "0")
    assert (told["verdict"], causes(told)) == ("rerun", [("rerun", [], True)])
    assert f"llmos_source  not recorded  {SOURCE[:12]}" in llmos("diff", "early", "a", "--no-tensors", "-q").out


def test_packages_and_code_are_not_told_apart(made: Workspace, llmos):
    """Of both only today's are installed."""
    packages = made.manifest(made.resolve("a")).made.environment["packages"]
    forged(made, "old", "a", 0.5, llmos_source="0" * 64, packages={**packages, "torch": "1.0"})
    (cause,) = answer(llmos, "old", "a", "--runs", "0")["causes"]
    assert cause["kind"] == "code+environment"
    assert [change["key"] for change in cause["changes"]] == ["llmos_source", "packages.torch"]
    assert cause["reason"] == "of llmos, packages, machine and rows only today's can be run"


def test_machine_and_config_apart(made: Workspace, llmos):
    forged(made, "elsewhere", "a", 0.5, device_name="another")
    told = answer(llmos, "elsewhere", "lr", "--runs", "0")
    assert [(kind, keys) for kind, keys, _ in causes(told)] == [
        ("environment", ["device_name"]),
        ("config", ["train.learning_rate"]),
    ]
    assert {run["how"] for run in told["runs"]} == {"found"}


def test_threads_are_a_difference_that_can_be_set(made: Workspace, llmos):
    forged(made, "wide", "a", 0.5, threads=2 + made.manifest(made.resolve("a")).made.environment["threads"])
    assert [(kind, keys) for kind, keys, _ in causes(answer(llmos, "a", "wide", "--runs", "0"))] == [
        ("environment", ["environment.threads"])
    ]


def rows(of: Callable[[int], int]) -> str:
    lines = [f"{'good nice fine' if at % 2 else 'bad poor sad'} {at},{of(at)}" for at in range(200)]
    return "text,label\n" + "\n".join(lines) + "\n"


def test_rows_that_changed_behind_their_source(new_workspace, tmp_path: Path, monkeypatch, llmos):
    """What of A is gone is told from what can still be set by what A's recipe makes of today's rows."""
    ws = new_workspace(tmp_path / "workspace", "text-classification")
    monkeypatch.chdir(ws.root)
    (ws.configs / "train.yaml").write_text(CSV)
    (ws.root / "rows.csv").write_text(rows(lambda at: at % 2))
    trained(ws, "a")
    (ws.root / "rows.csv").write_text(rows(lambda at: at % 2 if at % 3 else 0))
    trained(ws, "now")
    trained(ws, "now_lr", LR)
    told = answer(llmos, "a", "now_lr", "--split", "train", "--runs", "0")
    assert [(kind, keys[0]) for kind, keys, _ in causes(told)] == [
        ("data", "rows.csv train"),
        ("config", "train.learning_rate"),
    ]
    assert told["seeds"]["limit"] is None, "no other seed is there"


@pytest.mark.parametrize("retrained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_of_it_is_the_samples(new_workspace, tmp_path: Path, monkeypatch, llmos, retrained: bool) -> None:
    """The rows of the test split changed behind their source, twice: after A, and after B; the weights of both are the same, or nearly so."""
    ws = new_workspace(tmp_path / "workspace", "text-classification")
    monkeypatch.chdir(ws.root)
    (ws.root / "rows").mkdir()
    (ws.root / "rows" / "train.csv").write_text(rows(lambda at: at % 2))
    (ws.configs / "train.yaml").write_text(CSV.replace("rows.csv", "rows"))
    for name, wrong in (("a", 2), ("b", 5)):
        (ws.root / "rows" / "test.csv").write_text(rows(lambda at, wrong=wrong: at % 2 if at % wrong else 0))
        trained(ws, name, *(["train.max_steps=7"] if retrained and name == "b" else []))
    (ws.root / "rows" / "test.csv").write_text(rows(lambda at: at % 2 if at % 7 else 0))
    seen = [ws.metrics(ws.resolve(name))["accuracy", "test"].value for name in ("a", "b")]
    assert seen[0] != seen[1]
    told = llmos("why", "a", "b", "--metric", "accuracy", "--runs", "0", "--json", "-q").json
    assert (told["before"]["value"], told["after"]["value"]) == tuple(map(pytest.approx, seen))
    now = f"{told['tested']['rows']} rows {told['tested']['sha256'][:8]}"
    own = [f"200 rows {ws.manifest(ws.resolve(name)).made.data['splits']['test']['sha256'][:8]}" for name in "ab"]
    assert [each["changes"][0] for each in told["causes"] if each["kind"] == "test"] == [
        {"key": "test samples of a", "before": own[0], "after": now},
        {"key": "test samples of b", "before": now, "after": own[1]},
    ]
    assert (told["tested"]["of"], told["tested"]["others"]) == ([], ["a", "b"])
    planned = llmos("why", "a", "b", "--dry-run", "-q")
    assert [each in planned.out for each in (*own, now, "test samples of a", "test samples of b")] == [True] * 5
    assert sum(each["effect"] for each in told["causes"]) == pytest.approx(seen[1] - seen[0])
    assert told["answer"].startswith("all of it is the samples: ") and told["verdict"] == "samples"


def test_samples_that_both_had_and_nobody_has_now_are_no_cause(new_workspace, tmp_path: Path, monkeypatch, llmos):
    """The rows of the test split changed behind their source after both: the answer is for today's, and says so."""
    ws = new_workspace(tmp_path / "workspace", "text-classification")
    monkeypatch.chdir(ws.root)
    (ws.root / "rows").mkdir()
    (ws.root / "rows" / "train.csv").write_text(rows(lambda at: at % 2))
    (ws.root / "rows" / "test.csv").write_text(rows(lambda at: at % 2 if at % 5 else 0))
    (ws.configs / "train.yaml").write_text(CSV.replace("rows.csv", "rows"))
    trained(ws, "a")
    trained(ws, "b", LR)
    asked = ("why", "a", "b", "--metric", "loss", "--runs", "0", "-q")
    told = llmos(*asked, "--json").json
    assert (told["tested"]["of"], told["tested"]["others"], told["tested"]["seen"]) == (["a", "b"], [], None)
    assert "both measured on the 200 test rows" in (plain := llmos(*asked).out) and "of a and b\n" in plain
    (ws.root / "rows" / "test.csv").write_text(rows(lambda at: at % 2))
    seen = [ws.metrics(ws.resolve(name))["loss", "test"].value for name in ("a", "b")]
    today = llmos(*asked, "--json").json
    assert "test" not in {each["kind"] for each in today["causes"]}
    assert today["change"] == pytest.approx(sum(each["effect"] for each in today["causes"]))
    assert today["before"]["value"] != pytest.approx(seen[0]) and today["tested"]["seen"] == seen
    assert "of today; when made, a and b on others, where they were" in llmos(*asked).out


def test_what_another_llmos_measured_otherwise_is_not_the_samples(made: Workspace, llmos):
    """Its number was taken on the samples of today."""
    forged(made, "old", "a", 1.0, measured=9.0, llmos_source="0" * 64)
    told = answer(llmos, "old", "a", "--runs", "0")
    assert causes(told) == [("code", ["llmos_source"], False)]
    assert (told["before"]["value"], told["verdict"]) == (9.0, "explained")
    assert told["answer"].startswith("llmos_source: -")
    with_lr = answer(llmos, "old", "lr", "--runs", "0")
    assert next(kind for kind, _, _ in causes(with_lr)) == "code" and with_lr["before"]["value"] == 9.0
    assert sum(each["effect"] for each in with_lr["causes"]) == pytest.approx(with_lr["change"])


ACCURACY = ("--metric", "accuracy", "--runs", "0", "-q")


def test_accuracy_from_one_learning_rate_to_another(made: Workspace, llmos):
    told = llmos("why", "a", "lr", *ACCURACY, "--json").json
    assert (told["verdict"], causes(told)) == ("explained", [("config", ["train.learning_rate"], False)])
    assert 0 <= told["seeds"]["limit"] <= 1 and told["seeds"]["tells"]


def test_seeds_cannot_move_an_accuracy_by_more_than_there_is_of_it(made: Workspace, llmos):
    """Three short trainings lie so far apart that no two values of it can lie further than they may."""
    for seed in (0, 1, 2):
        trained(made, f"short{seed}", "train.max_steps=20", "train.learning_rate=0.1", f"seed={seed}")
    told = llmos("why", "short0", "lr", *ACCURACY, "--json").json
    assert (told["seeds"]["limit"], told["seeds"]["tells"], told["verdict"]) == (1.0, False, "unclear")
    plain = llmos("why", "short0", "lr", *ACCURACY).out
    assert "3 runs that differ in the seed alone lie too far apart to tell how far it moves it" in plain
    assert "it may be noise of the seed: more runs would tell" in plain


def test_the_plan_runs_nothing(made: Workspace, llmos):
    """What is there already is not counted: of A's recipe two seeds for the first, none for the second; no half of two changes."""
    trained(made, "long", "train.max_steps=121", "train.weight_decay=0.02")
    count = len(made.runs.list())
    told = llmos("why", "a", "lr", "--dry-run", "--json", "-q").json
    assert [(step["what"], step["at_least"], step["at_most"]) for step in told["steps"]] == [
        ("noise of the seed", 0, 0)
    ]
    assert "nothing would be run again" in llmos("why", "a", "lr", "--dry-run").out
    other = llmos("why", "long", "lr", "--dry-run", "--json", "-q").json
    asked = {step["what"]: (step["at_least"], step["at_most"]) for step in other["steps"]}
    assert asked == {"noise of the seed": (1, 4), "causes from one another": (0, 2)}
    took = {run.checkpoint: run.ended - run.started for run in made.runs.list()}
    least = min(took[made.resolve(name)] for name in ("long", "lr"))
    assert all(step["seconds"] > step["at_most"] * (least + 1) for step in other["steps"]), "torch alone takes a second"
    assert other["causes"] and all(cause["effect"] is None for cause in other["causes"])
    assert len(made.runs.list()) == count and not list((made.dot / "tmp").iterdir())


@pytest.mark.slow
def test_what_is_run_again_is_remembered(made: Workspace, llmos):
    """Two keys of which one counts, with nothing there but A and B."""
    trained(made, "slow", LR, "train.max_steps=121", "train.label_smoothing=0.001")
    trained(made, "start", "train.max_steps=122")
    refs, before = made.refs.pointing(), sorted(path.name for path in made.checkpoints.iterdir())
    told = answer(llmos, "start", "slow", "--runs", "6")
    assert ("config", ["train.learning_rate"], False) in causes(told)
    assert all(noisy for _, keys, noisy in causes(told) if keys != ["train.learning_rate"])
    ran = [run for run in told["runs"] if run["how"] == "run"]
    assert 3 <= len(ran) <= 6 and all(run["seconds"] > 0 for run in ran)
    again = answer(llmos, "start", "slow", "--runs", "0")
    assert causes(again) == causes(told) and "run" not in {run["how"] for run in again["runs"]}
    assert [each["effect"] for each in again["causes"]] == [each["effect"] for each in told["causes"]]
    assert (made.refs.pointing(), sorted(path.name for path in made.checkpoints.iterdir())) == (refs, before)
    trained(made, "later", "train.max_steps=123")
    steps = llmos(*WHY, "later", "a", "--dry-run", "--json").json["steps"]
    assert steps[0]["seconds"] > 0.7 * steps[0]["at_most"] * min(run["seconds"] for run in ran), "and how long it took"


@pytest.fixture(scope="module")
def _own_made(tmp_path_factory: pytest.TempPathFactory, new_workspace) -> Path:
    """`m1` with the code of one day, `m3` with that of another and another learning rate; the file is a third one by now."""
    ws = new_workspace(tmp_path_factory.mktemp("own") / "workspace", "image-classification")
    for name, bias, *sets in (("m1", "True"), ("m2", "False"), ("m3", "False", LR), ("m4", "False", LR, "seed=1")):
        (ws.root / "net.py").write_text(PICTURES.replace("config.num_labels)", f"config.num_labels, bias={bias})"))
        (ws.configs / "train.yaml").write_text(DIGITS.replace("arch: mlp, hidden_size: 16", "module: 'net.py:Net'"))
        trust.trust(ws, ws.root / "net.py")
        trained(ws, name, *sets)
    (ws.root / "net.py").write_text("raise SystemExit('edited')\n")
    return ws.root


@pytest.fixture
def own_made(_own_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    ws = copied(_own_made, tmp_path, monkeypatch)
    for name in ("m1", "m2"):
        trust.trust(ws, ws.checkpoint(ws.resolve(name)).path / "net.py")
    return ws


def code_of(ws: Workspace, name: str) -> str:
    return ws.manifest(ws.resolve(name)).tree["net.py"].sha256


def test_a_models_own_code_is_a_cause(own_made: Workspace, llmos):
    told = answer(llmos, "m1", "m2", "--runs", "0")
    (cause,) = told["causes"]
    assert cause["kind"] == "code" and cause["effect"] == told["change"] != 0
    assert cause["changes"] == [{"key": "net.py", "before": code_of(own_made, "m1"), "after": code_of(own_made, "m2")}]
    assert [kind for kind, _, _ in causes(answer(llmos, "m1", "m3", "--runs", "0"))] == ["code", "config"], (
        "m2 lies between"
    )
    assert causes(answer(llmos, "m3", "m4", "--runs", "0")) == [("seed", ["seed"], True)]


def test_code_that_is_not_trusted_any_more_is_refused_and_planned_so(own_made: Workspace, llmos):
    kept = f"checkpoints/{own_made.resolve('m1')}/net.py"
    assert llmos("trust", "--revoke", kept).code == 0
    refused = llmos(*WHY, "m1", "m3")
    assert (refused.code, refused.err.splitlines()[-1]) == (5, f"hint: read it, then `llmos trust {kept}`")
    planned = llmos(*WHY, "m1", "m3", "--dry-run")
    sentence = f"{kept} is code that is not trusted here: read it, then `llmos trust {kept}`"
    assert planned.code == 0 and f"would refuse: {sentence}" in planned.out
    assert llmos(*WHY, "m1", "m3", "--dry-run", "--json").json["refusals"] == [sentence]


@pytest.mark.slow
def test_the_recipe_of_one_with_the_code_of_the_other_is_run(own_made: Workspace, llmos):
    assert llmos("rm", "m2", "--force", "-q").code == 0
    before = trust._read()
    told = answer(llmos, "m1", "m3", "--runs", "8")
    assert [(kind, keys) for kind, keys, _ in causes(told)] == [
        ("code", ["net.py"]),
        ("config", ["train.learning_rate"]),
    ]
    assert "net.py as in m3, the rest as in m1" in [run["what"] for run in told["runs"] if run["how"] == "run"]
    assert (own_made.root / "net.py").read_text() == "raise SystemExit('edited')\n"
    assert trust._read() == before, "and nothing else stays trusted"


@pytest.mark.slow
def test_interrupted_it_leaves_everything_as_it_was(made: Workspace):
    trained(made, "long", "train.max_steps=121")
    before = sorted(path.name for path in made.checkpoints.iterdir())
    command = [sys.executable, "-m", "llmos_cli", "why", "long", "lr", "--metric", "loss"]
    with subprocess.Popen(command, cwd=made.root, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        assert any("run again" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait() == 130, told
    assert not list((made.dot / "tmp").iterdir())
    assert sorted(path.name for path in made.checkpoints.iterdir()) == before


@pytest.mark.slow
def test_operations_of_a_line_are_causes(made: Workspace, llmos):
    """From an ancestor on, what is there answers: each operation is a cause of its own; with another one first, it is run again."""
    quick = ("-q", "--keep-branch")
    assert llmos("prune", "lr", *quick, "-s", "prune.latency=false", "--sparsity", "0.9", "--json").code == 0
    pruned = made.runs.list()[-1].checkpoint
    assert llmos("quantize", pruned, *quick, "-s", "quantize.latency=false", "-s", "quantize.group_size=8").code == 0
    both = made.runs.list()[-1].checkpoint
    told = answer(llmos, "lr", both, "--runs", "2")
    assert [kind for kind, _, _ in causes(told)] in (["operation", "operation"], ["operation"])
    assert told["seeds"]["limit"] is not None or told["seeds"]["reason"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-9, 9)), min_size=1, max_size=12), st.integers(0, 9))
def test_legs_add_up_to_the_whole(drawn, limit):
    kinds, sizes = sorted(kind for kind, _ in drawn), [size for _, size in drawn]
    values, asked = np.cumsum([0.0, *sizes]), []

    def measure(at: int) -> float | str:
        asked.append(at)
        return float(values[at]) if at % 5 != 3 or at == len(sizes) else "it cannot be run"

    legs = walk(kinds, measure, limit=limit)
    assert [leg.low for leg in legs] == [0, *(leg.high for leg in legs[:-1])] and legs[-1].high == len(sizes)
    assert sum(leg.effect for leg in legs) == values[-1]
    for leg in legs:
        assert leg.high - leg.low == 1 or abs(leg.effect) <= limit or leg.reason
    assert len(set(asked)) <= len(sizes) + 1


@given(st.integers(1, 64).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1))))
def test_one_that_counts_among_many_is_found_by_halving(case):
    count, culprit = case
    asked = set()

    def measure(at: int) -> float:
        asked.add(at)
        return float(at > culprit)

    legs = walk(["config"] * count, measure, limit=0.5)
    assert [(leg.low, leg.high) for leg in legs if abs(leg.effect) > 0.5] == [(culprit, culprit + 1)]
    assert len(asked) <= 2 + (count - 1).bit_length()


def test_the_limit_is_students_and_rarely_wrong():
    from scipy.special import stdtrit

    for count, quantile in noise.STUDENT.items():
        assert quantile == pytest.approx(stdtrit(count - 1, 1 - 0.05 / 2 / len(noise.STUDENT)), abs=1e-4)
    assert noise.limit([1.0, 2.0]) is None and noise.limit([1.0, 1.0, 1.0]) == 0.0
    assert noise.limit([1.0, 2.0, 3.0]) == pytest.approx(2**0.5 * 7.6488)
    assert noise.limit([0.2, 0.5, 0.8], span=1.0) == 1.0 and noise.limit([0.2, 0.2, 0.2], span=1.0) == 0.0
    random, wrong = np.random.default_rng(0), 0
    for _ in range(1500):
        first, *others, other = random.normal(size=6)
        looks = [noise.limit([first, *others[:more]]) for more in (2, 3, 4)]
        wrong += any(limit is not None and abs(other - first) > limit for limit in looks)
    assert wrong / 1500 < 0.06


def test_all_differences_of_a_recipe_make_the_other(made: Workspace):
    for one, other in pairwise(("a", "all", "seed2", "both", "other", "a")):
        found = pair(made, made.resolve(one), made.resolve(other))
        assert identity(found.recipe(())) == identity([slot.before for slot in found.slots])
        assert identity(found.recipe(found.differences)) == identity([slot.after for slot in found.slots])
