"""Killed just before any call of `run`: what is remembered of a stage is right or not there, and the next run ends as this would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmos_cli.core.objects import hash_file
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from tests.core.durability import unsafe
from tests.core.tracing import Call, Forks, copied

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

MODULES = [
    *("llmos_cli.app", "llmos_cli.core.index", "sqlite3", "concurrent.futures.thread", "llmos_cli.operations.fetch"),
    *(f"llmos_cli.{kind}.{verb}" for kind in ("operations", "commands") for verb in ("run", "trust")),
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
