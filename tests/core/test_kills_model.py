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
from tests.core.durability import unsafe
from tests.core.killing import settle, state
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

VERBS = ("train", "import_", "prune", "quantize", "compress", "tune")
MODULES = [
    *(
        "llmos_cli.app",
        "llmos_cli.methods.prune.wanda",
        "llmos_cli.methods.prune.width",
        "llmos_cli.methods.quantize.gptq",
    ),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in VERBS),
]
COMMANDS = {
    "train": ("train", "-s", "seed=1", "-s", "train.max_steps=1"),
    "train onwards": ("train", "HEAD", "-s", "train.max_steps=1"),
    "distil": ("train", "-s", "train.teacher=HEAD", "-s", "train.max_steps=1"),
    "import": ("import", "outside"),
    "import in one file": ("import", "one"),
    "prune": ("prune", "--method", "wanda", "--sparsity", "0.5"),
    "prune and heal": ("prune", "--method", "wanda", "--sparsity", "0.5", "--heal", "1"),
    "cut": ("prune", "--method", "width", "--sparsity", "0.25"),
    "quantize": ("quantize", "--method", "gptq"),
    "compress": ("compress", "--target-ratio", "0.9"),
    "tune --apply": (
        *("tune", "--apply", "-s", "tune.trials=1", "-s", "tune.max_steps=1"),
        *("-s", "tune.space={train.learning_rate: [0.004]}"),
    ),
}
COMMIT = "llmos_cli.core.storing:prepare"
"""Where the commit step begins: what is computed has been computed, and is on the disk in a staged folder."""
APPLIES = "llmos_cli.operations.tune:_apply"
"""Of a search the commits are those of trainings, in processes of their own; what is left is to write what was found."""


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
    settle(ws)
    return copied(ws.root, scratch / "template")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commit_step_is_killed_at_every_call(
    name: str, forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    """Also by any of the calls after it, to the end of the command."""
    words, root = COMMANDS[name], scratch / "w"
    copied(template, root)
    with forks.until(APPLIES if "--apply" in words else COMMIT, words, root):
        begun = copied(root, scratch / "begun")
        assert forks.run(words, root) == 0, forks.said  # what is imported on the way is compiled now, and never again
        before = state(copied(begun, root))
        copied(begun, root)
        calls = forks.calls(words, root, root)
        assert unsafe(calls, root, begun) == []
        after = state(root)
        assert after != before and len(calls) > 20
        for call in calls:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            ws = Workspace.find(root)
            assert fsck(ws).problems == (), f"killed before {call}"
            assert state(root) in (before, after), f"killed before {call}"
            assert tag(ws, "next").name == "next", f"killed before {call}"
    copied(template, root)
    assert forks.run(words, root) == 0 and state(root) == after
