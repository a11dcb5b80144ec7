"""reproduce: made again from the manifests alone, to the bit; or where it went apart, and by how much."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from llmos_cli.core import trust
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.determinism import determinism
from llmos_cli.operations.environment import SOURCE
from tests.operations.test_own_model import PICTURES


def test_a_training_comes_out_again(on_rows: Workspace, llmos, monkeypatch):
    monkeypatch.setenv("LLMOS_TRAIN__MAX_STEPS", "9")  # what is set today is no part of what was recorded
    (on_rows.configs / "train.yaml").write_text("train: {max_steps: 8}\n")
    before = sorted(path.name for path in on_rows.checkpoints.iterdir())
    told = llmos("reproduce", "--json", "-q")
    assert told.code == 0, told.err
    (step,) = told.json["steps"]
    assert (step["result"], step["checkpoint"]) == ("identical", on_rows.resolve())
    assert step["expected"].startswith("bitwise: with these packages on ")
    assert sorted(path.name for path in on_rows.checkpoints.iterdir()) == before
    assert len(on_rows.runs.list()) == 1 and not list((on_rows.dot / "tmp").iterdir())


def test_data_that_changed_is_named_before_anything_is_computed(on_rows: Workspace, llmos):
    with (on_rows.root / "rows.csv").open("a") as file:
        file.write("bad new row,0\n")
    told = llmos("reproduce")
    assert told.code == 5
    assert f"split of rows.csv is not what {on_rows.resolve()[:12]} was made with: it had" in told.err
    (on_rows.root / "rows.csv").unlink()
    gone = llmos("reproduce")
    assert gone.code == 5 and "rows.csv" in gone.err and "is gone" in gone.err


def test_where_it_goes_apart_and_by_how_much(on_rows: Workspace, llmos):
    """A checkpoint that says it was trained so, and was not."""
    base = on_rows.checkpoint()
    with on_rows.begin("train", config={}) as run, on_rows.stage() as staged:
        for name in base.manifest.tree:
            shutil.copyfile(base.path / name, staged / name)
        file = next(path for path in staged.glob("*.safetensors"))
        tensors = load_file(file)
        name = max(tensors, key=lambda each: tensors[each].numel())
        save_file({**tensors, name: tensors[name] * 1.25}, file, metadata={"format": "pt"})
        made = replace(base.manifest.made, environment={**base.manifest.made.environment, "llmos_source": "0" * 64})
        forged = run.commit(staged, made)
    told = llmos("reproduce", "--json", "-q")
    assert told.code == 1
    (step,) = told.json["steps"]
    assert (step["result"], step["files"], step["weight"]) == ("diverged", [file.name], name)
    assert step["change"] == pytest.approx(0.2, rel=1e-3), "of its norm"
    plain = llmos("reproduce", "-q")
    assert f"{forged.id[:12]} could not be made again" in plain.err and "differs most is" in plain.out
    first = f"not all is as it was then: llmos_source was 000000000000 and is {SOURCE[:12]}"
    assert plain.out.splitlines()[3] == first
    assert f"hint: {first}; expected was: bitwise: with these packages" in plain.err


def test_what_was_imported_is_taken_as_it_is(on_rows: Workspace, llmos, tmp_path):
    assert llmos("export", "-o", tmp_path / "out").code == 0
    assert llmos("import", tmp_path / "out", "-q").code == 0
    told = llmos("reproduce")
    assert told.code == 2 and "it was imported" in told.err


@pytest.mark.slow
@pytest.mark.parametrize("file", ["net.py", "nets/net.py", "../net.py"])
def test_a_model_of_ones_own(new_workspace, llmos, tmp_path, monkeypatch, file: str):
    """Its checkpoint has the code as it was then, and that is what runs, in the scratch workspace too, where the user trusts it."""
    ws = new_workspace(tmp_path / "own", "image-classification")
    monkeypatch.chdir(ws.root)
    code = ws.root / file
    code.parent.mkdir(exist_ok=True)
    code.write_text(PICTURES)
    (code.parent / "data.txt").write_text("beside it")
    assert llmos("trust", file).code == 0
    assert llmos("train", "-q", "-s", f"model={{module: '{file}:Net'}}", "-s", "train.max_steps=4").code == 0
    assert llmos("prune", "-q", "-s", "prune.latency=false").code == 0
    code.write_text("raise SystemExit('edited')\n")
    before = trust._read()
    again = llmos("reproduce", "-q")
    assert again.code == 0, again.err
    assert (trust._read(), code.read_text()) == (before, "raise SystemExit('edited')\n")
    assert not code.parent.is_symlink() and (code.parent / "data.txt").read_text() == "beside it"


@pytest.mark.slow
def test_a_model_of_ones_own_that_is_not_trusted_any_more(new_workspace, llmos, tmp_path, monkeypatch):
    ws = new_workspace(tmp_path / "own", "image-classification")
    monkeypatch.chdir(ws.root)
    (ws.root / "net.py").write_text(PICTURES)
    assert llmos("trust", "net.py").code == 0
    assert llmos("train", "-q", "-s", "model={module: net.py:Net}", "-s", "train.max_steps=4").code == 0
    (ws.root / "net.py").unlink()
    assert llmos("trust", "--revoke", "net.py").code == 0
    refused = llmos("reproduce", "-q")
    kept = f"checkpoints/{ws.resolve()}/net.py"
    assert (refused.code, refused.err.splitlines()) == (
        5,
        [f"error: {kept} is code that is not trusted here", f"hint: read it, then `llmos trust {kept}`"],
    )
    assert llmos("trust", kept).code == 0
    assert llmos("reproduce", "-q").code == 0


@pytest.mark.slow
def test_a_line_of_several_operations(new_workspace, llmos, tmp_path, monkeypatch):
    ws = new_workspace(tmp_path / "line", "image-classification")
    monkeypatch.chdir(ws.root)
    quick = ("-q", "-s", "train.max_steps=4")
    assert llmos("train", *quick, "-s", "model.arch=mlp", "-s", "model.hidden_size=16").code == 0
    assert llmos("train", "HEAD", *quick, "-s", "train.teacher=HEAD", "--unset", "model").code == 0
    assert llmos("prune", "-q", "-s", "prune.latency=false", "--heal", "2").code == 0
    assert llmos("quantize", "-q", "-s", "quantize.latency=false", "-s", "quantize.group_size=8").code == 0
    told = llmos("reproduce", "--json", "-q")
    assert told.code == 0, told.err
    assert [step["operation"] for step in told.json["steps"]] == ["train", "train", "prune", "quantize"]
    assert {step["result"] for step in told.json["steps"]} == {"identical"}
    assert f"every byte of {ws.resolve()[:12]} came out again" in llmos("reproduce", "-q").out


@pytest.mark.parametrize(
    "config, facts, level",
    [
        ({}, {}, "bitwise"),
        ({"max_seconds": 5}, {}, "none"),
        ({"target_latency": 0.5}, {}, "none"),
        ({}, {"resumed": "from step 3 on: ..."}, "none"),
        ({}, {"device": "cuda"}, "metrics"),
    ],
)
def test_how_exactly_it_could_be_made_again(config, facts, level):
    environment = {"device": "cpu", "device_name": "a CPU", "threads": 1, **facts}
    assert determinism("train", {"train": config}, environment)["level"] == level
