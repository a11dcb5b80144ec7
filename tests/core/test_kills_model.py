"""The commit step of commands that compute: killed before any of its calls, there is the model of before or the new one, whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.tag import tag
from llmos_cli.operations.tuning.trial import carry_out_trial
from llmos_cli.operations.tuning.workers import Job, Trained
from tests.core.durability import unsafe
from tests.core.killing import rehearsed, settle, state
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

VERBS = ("train", "import_", "prune", "quantize", "compress", "tune", "eval", "export")
MODULES = [
    *(
        __name__,
        "llmos_cli.app",
        "llmos_cli.methods.prune.wanda",
        "llmos_cli.methods.prune.width",
        "llmos_cli.methods.quantize.gptq",
    ),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in VERBS),
]


def carry_out_a_trial() -> None:
    """As a worker of a search does it: a run that moves no branch."""
    job = Job(0, {"train.max_steps": 1}, ["bits_per_byte"], prunable=False)
    assert isinstance(carry_out_trial(Workspace.find(), job, lambda _: True), Trained)


COMMANDS = {
    "train": ("train", "-s", "seed=1", "-s", "train.max_steps=1"),
    "train onwards": ("train", "HEAD", "-s", "train.max_steps=1"),
    "distil": ("train", "-s", "train.teacher=HEAD", "-s", "train.max_steps=1"),
    "import": ("import", "outside"),
    "import in one file": ("import", "one"),
    "import of GGUF": ("import", "one.gguf"),
    "prune": ("prune", "--method", "wanda", "--sparsity", "0.5"),
    "prune and heal": ("prune", "--method", "wanda", "--sparsity", "0.5", "--heal", "1"),
    "cut": ("prune", "--method", "width", "--sparsity", "0.25"),
    "quantize": ("quantize", "--method", "gptq"),
    "compress": ("compress", "--target-ratio", "0.9"),
    "eval": ("eval", "HEAD"),
    "trial": (f"{__name__}:carry_out_a_trial",),
    "tune --apply": (
        *("tune", "--apply", "-s", "tune.trials=1", "-s", "tune.max_steps=1"),
        *("-s", "tune.space={train.learning_rate: [0.004]}"),
    ),
}
COMMIT = "llmos_cli.core.storing:prepare"
"""Where the commit step begins: what is computed has been computed, and is on the disk in a staged folder."""
PLACES = {"tune --apply": "llmos_cli.operations.tune:_apply", "eval": "llmos_cli.operations.evaluations:keep"}
"""Of those that commit nothing: what is left of a search is to write what was found (how its study is told is killed in
test_kills_tune.py), and of an evaluation to keep it."""


@pytest.fixture(scope="module")
def template(scratch: Path, forks: Forks, new_workspace: Callable[..., Workspace]) -> Path:
    """A workspace with a tiny language model, and copies of it that llmos knows nothing of."""
    ws = new_workspace(scratch / "w")
    assert forks.run(("train", "-s", "train.max_steps=1"), ws.root) == 0, forks.said
    shutil.copytree(ws.checkpoint().path, ws.root / "outside", ignore=shutil.ignore_patterns("manifest.json"))
    shutil.copytree(ws.root / "outside", ws.root / "one", ignore=shutil.ignore_patterns("model*"))
    weights = {
        name: value
        for file in sorted((ws.root / "outside").glob("*.safetensors"))
        for name, value in load_file(file).items()
    }
    save_file(weights, ws.root / "one" / "model.safetensors", metadata={"format": "pt"})
    assert forks.run(("export", "-o", "one.gguf", "--format", "gguf"), ws.root) == 0, forks.said
    settle(ws)
    return copied(ws.root, scratch / "template")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commit_step_is_killed_at_every_call(
    name: str, forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """Also by any of the calls after it, to the end of the command."""
    words, root = COMMANDS[name], scratch / "w"
    copied(template, root)
    with forks.until(PLACES.get(name, COMMIT), words, root):
        begun = copied(root, scratch / "begun")
        before, calls, after = rehearsed(forks, words, root, begun)
        assert after != before and len(calls) > (5 if name in PLACES else 20)
        for call in calls:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            ws = Workspace.find(root)
            assert fsck(ws).problems == (), f"killed before {call}"
            assert state(root) in (before, after), f"killed before {call}"
            assert tag(ws, "next").name == "next", f"killed before {call}"
    copied(template, root)
    assert forks.run(words, root) == 0 and state(root) == after


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_an_export_is_killed_at_every_call(
    format: str, forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """From where it is written: under its name there is nothing or all of it, and what a kill left goes with the next one."""
    words, root, out = ("export", "-o", "out/model", "--format", format), scratch / "w", scratch / "w" / "out"
    copied(template, root)
    with forks.until("llmos_cli.operations.export:_publish", words, root):
        begun = copied(root, scratch / "begun")
        assert forks.run(words, root) == 0, forks.said
        copied(begun, root)
        calls = forks.calls(words, root, root)
        assert unsafe(calls, root, begun) == []
        whole = contents(out)
        assert whole and len(calls) > 10
        for call in calls:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
            assert contents(out) in ({}, whole), f"killed before {call}"
    copied(begun, root)
    assert len(list(out.iterdir())) == 1
    assert forks.run(words, root) == 0, forks.said
    assert contents(out) == whole and [path.name for path in out.iterdir()] == ["model"]


def contents(folder: Path) -> dict[str, bytes]:
    """Of what has a name that does not begin with a dot."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not name.parts[0].startswith(".")}
