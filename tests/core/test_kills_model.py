"""The commit step of commands that compute: killed before any of its calls, there is the model of before or the new one, whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from tests.core.durability import unsafe
from tests.core.killing import settle, state
from tests.core.tracing import Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
]

VERBS = ("train", "import_")
MODULES = ["llmos_cli.app", *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in VERBS)]
COMMANDS = {
    "train": ("train", "-s", "train.max_steps=1"),
    "import": ("import", "outside"),
}


@pytest.fixture(scope="module")
def template(scratch: Path, forks: Forks, new_workspace: Callable[..., Workspace]) -> Path:
    """A workspace with a tiny language model, and a copy of it that llmos knows nothing of."""
    ws = new_workspace(scratch / "w")
    assert forks.run(("train", "-s", "train.max_steps=1"), ws.root) == 0, forks.said
    shutil.copytree(ws.checkpoint().path, ws.root / "outside", ignore=shutil.ignore_patterns("manifest.json"))
    settle(ws)
    return copied(ws.root, scratch / "template")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commit_step_is_killed_at_every_call(
    name: str, forks: Forks, template: Path, scratch: Path, home: None
) -> None:
    words, root = COMMANDS[name], scratch / "w"
    assert forks.run(words, copied(template, root)) == 0, (
        forks.said
    )  # once before: libraries make folders for themselves
    before = state(copied(template, root))
    calls = forks.calls(words, root, root)
    assert unsafe(calls, root, template) == []
    after = state(root)
    step = next(number for number, call in enumerate(calls) if "/tmp/probe" in str(call))
    assert after != before and len(calls) - step > 30
    for call in calls[step:]:
        copied(template, root)
        # How many files libraries read varies; and before a file is made, all is as after the call before, an fsync mostly.
        assert forks.killed(words, root, call) or call.name in ("openat", "ioctl"), f"{call} never came"
        assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
        assert state(root) in (before, after), f"killed before {call}"
    copied(template, root)
    assert forks.run(words, root) == 0 and state(root) == after
