"""Killed just before any call of `run`: what is remembered of a stage is right or not there, and the next run ends as this would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.objects import hash_file
from llmos_cli.core.refs import STAGES
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import run as running
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.pipeline.looking import RunOptions
from tests.core.durability import unsafe
from tests.core.killing import settle, torn
from tests.core.tracing import Call, Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = [
    __name__,
    *("llmos_cli.app", "llmos_cli.core.index", "sqlite3", "concurrent.futures.thread", "llmos_cli.operations.fetch"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in ("run", "trust", "gc")),
    *("llmos_cli.operations.pipeline.cache", "llmos_cli.transports.local", "llmos_cli.operations.environment"),
]
COMMANDS = {
    "run": ("run", "-q"),
    "run --cache-dir": ("run", "-q", "--cache-dir", "kept"),
    "run from the cache": ("run", "-q", "--cache-dir", "full"),
}
PIPELINE = """\
format: 1
pipeline:
  clean: {sh: "tr a-z A-Z < raw.txt > clean.txt", inputs: [raw.txt], outputs: [clean.txt]}
  count: {sh: "wc -c < clean.txt > count.txt", inputs: [clean.txt], outputs: [count.txt]}
"""
OUTPUTS = {"clean.txt": "ONE\n", "count.txt": "4\n"}


@pytest.fixture
def begun(forks: Forks, scratch: Path, home: None) -> Path:
    """Two stages of which nothing was run here, and a cache that has both."""
    shutil.rmtree(scratch / "w", ignore_errors=True)
    ws = Workspace.create(scratch / "w")
    (ws.root / "raw.txt").write_text("one\n")
    (ws.root / "llmos.yaml").write_text(PIPELINE)
    assert forks.run(("trust", "--pipeline"), ws.root) == 0, forks.said
    copied(ws.root, scratch / "begun")
    assert forks.run(COMMANDS["run from the cache"], ws.root) == 0, forks.said
    copied(ws.root / "full", scratch / "begun" / "full")
    return scratch / "begun"


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_call(name: str, forks: Forks, begun: Path, scratch: Path) -> None:
    words, root = COMMANDS[name], copied(begun, scratch / "w")
    calls = [call for call in forks.calls(words, root, root) if not of_a_shell(call)]
    assert unsafe(calls, root, begun) == []
    after = remembered(root)
    assert len(after) == 2 and outputs(root) == OUTPUTS and len(calls) > 20
    for call in calls:
        copied(begun, root)
        assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
        assert remembered(root).items() <= after.items(), f"killed before {call}"
        assert forks.run(words, root) == 0, f"killed before {call}: {forks.said}"
        assert (remembered(root), outputs(root)) == (after, OUTPUTS), f"killed before {call}"


def of_a_shell(call: Call) -> bool:
    """What a stage's own command writes is not llmos's."""
    return call.paths[-1].endswith(tuple(f"/w/{name}" for name in OUTPUTS)) and call.name in ("openat", "write")


def outputs(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text() for name in OUTPUTS}


def remembered(root: Path) -> dict[str, dict[str, str]]:
    """Of each result its outputs, whose contents are all kept."""
    folder = root / ".llmos" / "pipeline"
    found = {path.stem: json.loads(path.read_bytes())["outputs"] for path in folder.glob("results/*.json")}
    for sha256 in [each for outputs in found.values() for each in outputs.values()]:
        assert hash_file(folder / "objects" / sha256).sha256 == sha256
    return found


class OneThread:
    """A pool that has none but the caller's: a fork keeps the thread that forks, and no other."""

    def __init__(self, jobs: int) -> None: ...

    def __enter__(self) -> OneThread:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*given))
        return done


def run_in_one_thread() -> None:
    running.ThreadPoolExecutor = OneThread  # type: ignore[assignment,misc]
    told = running.run(Workspace.find(), (), RunOptions(), emit=lambda _: None)
    assert [stage.status for stage in told.stages] == ["made"], told


TRAINING = """\
format: 1
pipeline:
  base: {verb: train, set: {train.max_steps: 1}}
"""


def test_a_checkpoint_is_killed_on_its_way_to_its_stage(
    forks: Forks, scratch: Path, new_workspace: Callable[..., Workspace], home: None
) -> None:
    """From where the stage's process has ended: its ref moves from one whole checkpoint to another, once the result is remembered."""
    shutil.rmtree(scratch / "w", ignore_errors=True)
    ws = new_workspace(scratch / "w", "image-classification")
    words, root = (f"{__name__}:run_in_one_thread",), ws.root
    (root / "llmos.yaml").write_text(TRAINING)
    assert forks.run(("run", "-q"), root) == 0, forks.said
    (root / "llmos.yaml").write_text(TRAINING.replace("steps: 1", "steps: 2"))
    settle(ws)
    left: dict[tuple[int, str | None, str], tuple[Call, Path]] = {}
    with forks.until("llmos_cli.operations.run:_keep", words, root):
        begun = copied(root, scratch / "begun")
        before = known(copied(begun, root))
        calls = forks.calls(words, root, root)
        assert unsafe(calls, root, begun) == []
        after, made = known(root), tree(root)
        assert (before[0], after[0], before[2], after[2]) == (1, 2, "running", "done") and before[1] != after[1]
        for call in calls:
            copied(begun, root)
            assert forks.killed(words, root, call) or call.aside, f"{call} never came: {forks.said}"
            assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
            assert torn(root) == [], f"killed before {call}"
            now = known(root)
            assert all(part in (before[at], after[at]) for at, part in enumerate(now)), f"killed before {call}"
            assert now[:2] != (before[0], after[1]), f"killed before {call}: it is named, and not remembered"
            if now not in left:
                left[now] = call, copied(root, scratch / f"left-{len(left)}")
    assert len(left) > 2
    for now, (call, folder) in left.items():
        copied(folder, root)
        assert forks.run(("run", "-q"), root) == 0, f"killed before {call}: {forks.said}"
        assert (known(root)[0], known(root)[2], tree(root)) == (2, "done", made), f"killed before {call}"
        assert known(root)[1] == after[1] or now[0] == before[0], (
            f"killed before {call}: what is remembered is made again"
        )


def known(root: Path) -> tuple[int, str | None, str]:
    """How many results are remembered, which checkpoint the stage's ref names, and how the stage ended, as it was noted."""
    folder = root / ".llmos" / "pipeline"
    noted = json.loads((folder / "stages" / "base.json").read_bytes())
    return len([*folder.glob("results/*.json")]), Workspace.find(root).refs.read(f"{STAGES}base"), str(noted["status"])


def tree(root: Path) -> dict[str, str]:
    """What the stage made, by content: the time of a commit is in its id."""
    return {name: each.sha256 for name, each in Workspace.find(root).checkpoint("stages/base").manifest.tree.items()}


COLLECT = ("gc", "-q", "--expire", "now")


def test_gc_of_results_is_killed_at_every_call(forks: Forks, begun: Path, scratch: Path) -> None:
    """A result goes before the contents of its outputs, and what the stages made last is never touched."""
    root = copied(begun, scratch / "w")
    assert forks.run(COMMANDS["run"], root) == 0, forks.said
    (root / "raw.txt").write_text("two\nthree\n")
    assert forks.run(COMMANDS["run"], root) == 0, forks.said
    settle(Workspace(root))
    start, before, made = copied(root, scratch / "start"), remembered(root), outputs(root)
    calls = forks.calls(COLLECT, root, root)
    assert unsafe(calls, root, start) == []
    after = remembered(root)
    assert (len(before), len(after)) == (4, 2) and len(kept(start)) - len(kept(root)) == 2 and len(calls) > 5
    for call in calls:
        copied(start, root)
        assert forks.killed(COLLECT, root, call) or call.aside, f"{call} never came: {forks.said}"
        assert fsck(Workspace.find(root)).problems == (), f"killed before {call}"
        assert after.items() <= remembered(root).items() <= before.items(), f"killed before {call}"
        assert forks.run(COLLECT, root) == 0, f"killed before {call}: {forks.said}"
        assert (remembered(root), len(kept(root)), outputs(root)) == (after, 2, made), f"killed before {call}"


def kept(root: Path) -> list[Path]:
    return [*(root / ".llmos" / "pipeline" / "objects").iterdir()]
