"""A training run that was cut off, gone on with, and killed before any call of that too: it can be gone on with again, and ends as
one that was gone on with once and not killed (that this one ends as a training that was never cut off, tests/operations/test_train.py shows)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from tests.core.killing import rehearsed, settle, state, torn
from tests.core.tracing import Call, Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = ["llmos_cli.app", "llmos_cli.operations.train", "llmos_cli.commands.train"]
TRAIN = ("train", "-q", "-s", "train.max_steps=3", "-s", "train.save_every=2")
COMMANDS = {
    "train --resume": ("train", "-q", "--resume"),
    "train --resume -s": ("train", "-q", "--resume", "-s", "train.learning_rate=0.001"),
}
BEGINNING, COMMIT = "llmos_cli.core.runs:resume", "llmos_cli.core.storing:prepare"


@pytest.fixture(scope="module")
def template(scratch: Path, forks: Forks, new_workspace: Callable[..., Workspace]) -> Path:
    """A run with a state of its second step, that died as it was to commit its third."""
    ws = new_workspace(scratch / "w")
    with forks.until(COMMIT, TRAIN, ws.root):
        pass
    settle(ws)
    (run,) = ws.runs.list()
    assert run.status == "died" and (run.path / "state" / "training.pt").is_file()
    return copied(ws.root, scratch / "template")


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name in COMMANDS for place in (BEGINNING, COMMIT)],
)
def test_killed_at_every_call(name: str, place: str, forks: Forks, template: Path, scratch: Path, home: None) -> None:
    """From its beginning to where it commits, and from there to its end."""
    words, root = COMMANDS[name], copied(template, scratch / "w")
    left: dict[str, tuple[Call, Path]] = {}
    with forks.until(place, words, root):
        begun = copied(root, scratch / "begun")
        before, calls, after = rehearsed(forks, words, root, begun)
        if place == BEGINNING:
            calls = list(takewhile(lambda call: "/.llmos/tmp/" not in str(call), calls))
        assert after != before and len(calls) > 5
        for call in calls:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
            assert torn(root) == [], f"killed before {call}"
            assert state(root) in (before, after), f"killed before {call}"
            if (now := str(visible(root))) not in left:
                left[now] = call, copied(root, scratch / f"left-{len(left)}")
    for call, folder in left.values():
        copied(folder, root)
        (run,) = Workspace.find(root).runs.list()
        if run.status != "done":
            assert forks.run(words[:3], root) == 0, f"killed before {call}: {forks.said}"
        if name == "train --resume":
            assert state(root) == after, f"killed before {call}"
        assert told(root) == rates(root), f"killed before {call}"
        assert visible(root)["status"] == "done", f"killed before {call}"


def visible(root: Path) -> dict[str, Any]:
    """What the next command goes by."""
    (run,) = Workspace.find(root).runs.list()
    kept = {path.name: path.stat().st_size for path in (run.path / "state").glob("*")}
    return {"status": run.status, "state": kept, "config": (run.path / "config.yaml").read_text(), "refs": state(root)}


def rates(root: Path) -> list[str]:
    """What the checkpoint is to say of its steps, from the rate that its config ends with."""
    ws = Workspace.find(root)
    rate = ws.checkpoint().manifest.made.config["train"]["learning_rate"]
    return [f"from step 2 on: train.learning_rate {rate} (was 0.002)"] if rate != 0.002 else []


def told(root: Path) -> list[str]:
    said = Workspace.find(root).checkpoint().manifest.made.environment.get("resumed", "")
    return said.split("; ") if said else []
