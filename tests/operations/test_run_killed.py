"""llmos run cut off: what runs is told once and saves its state, and the next run goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.pipeline.memory import Memory
from tests.operations.test_run import statuses

LONG = "set: {train.max_steps: 60, train.save_every: 5, train.eval_every: 60}"
PIPELINE = f"pipeline:\n  base: {{verb: train, {LONG}}}\n"


@pytest.fixture
def slow(new_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose pipeline trains for some seconds."""
    ws = new_workspace(tmp_path / "workspace", "image-classification")
    (ws.root / "llmos.yaml").write_text(PIPELINE)
    monkeypatch.chdir(ws.root)
    return ws


@pytest.fixture
def begun(slow: Workspace) -> Iterator[subprocess.Popen[str]]:
    """`llmos run` in a process of its own, once its training has saved a state."""
    command = [sys.executable, "-m", "llmos_cli", "run", "-q"]
    process = subprocess.Popen(command, cwd=slow.root, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: saved(slow) or process.poll() is not None)
    assert process.poll() is None, process.stderr and process.stderr.read()
    yield process
    for record in slow.runs.list():
        if record.alive:
            os.kill(record.pid, signal.SIGKILL)
    process.kill()
    process.communicate()


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    assert holds()


def saved(ws: Workspace) -> bool:
    return any(any((run / "state").glob("*")) for run in (ws.root / "runs").glob("*-train-*"))


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.cold
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(slow, begun, llmos, number, code):
    begun.send_signal(number)
    _, told = begun.communicate(timeout=60)
    assert begun.returncode == code and "`llmos run` goes on where it stopped" in told
    (record,) = slow.runs.list()
    assert record.status in ("interrupted", "terminated") and not record.alive
    (planned,) = llmos("run", "--dry-run", "--json").json["stages"]
    assert (planned["status"], planned["why"]) == ("would run", "it was interrupted")
    went_on = llmos("run", "--json")
    assert went_on.code == 0 and statuses(went_on) == {"base": "made"}
    assert went_on.json["stages"][0]["runs"] == [record.id], "the same run, not another one"
    sets = LONG.removeprefix("set: {").removesuffix("}").replace(": ", "=").split(", ")
    straight = llmos("train", "-q", "--json", "--keep-branch", *(word for each in sets for word in ("-s", each))).json
    assert slow.manifest(straight["checkpoint"]).tree == slow.manifest(slow.resolve("stages/base")).tree


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_its_stage_running_and_says_so(slow, begun, llmos):
    begun.kill()
    begun.wait()
    told = llmos("run", "-q", "--json")
    assert told.code == 6 and told.json["stages"][0]["message"].startswith("base is still running")
    (record,) = slow.runs.alive()
    assert told.json["stages"][0]["hint"] == f"wait for it, or `llmos stop {record.id}` ends it"
    assert llmos("stop", record.id).code == 0
    went_on = llmos("run", "--json")
    assert went_on.code == 0 and went_on.json["stages"][0]["runs"] == [record.id]


@pytest.mark.slow
def test_a_stage_that_is_killed_fails_and_goes_on(slow, begun, llmos):
    (record,) = slow.runs.alive()
    os.kill(record.pid, signal.SIGKILL)
    begun.communicate(timeout=60)
    assert begun.returncode == 1
    went_on = llmos("run", "--json")
    assert went_on.code == 0 and went_on.json["stages"][0]["runs"] == [record.id]


def test_a_command_that_outlives_its_run_is_told_with_how_it_is_ended(empty: Workspace, llmos):
    (empty.root / "llmos.yaml").write_text("pipeline: {slow: {sh: 'sleep 600; :'}}\n")
    llmos("trust", "--pipeline")
    command = [sys.executable, "-m", "llmos_cli", "run", "-q"]
    process = subprocess.Popen(command, cwd=empty.root, stderr=subprocess.DEVNULL)
    until(lambda: (last := Memory(empty).last("slow")) is not None and last.alive)
    process.kill()
    process.wait()
    last = Memory(empty).last("slow")
    assert last is not None and last.process is not None
    told = llmos("run", "-q")
    os.killpg(last.process[0], signal.SIGTERM)
    assert told.code == 6 and f"wait for it, or `kill -- -{last.process[0]}` ends it" in told.err
    until(lambda: llmos("run", "--dry-run").code == 0)
    assert "it was interrupted" in llmos("run", "--dry-run").out


def test_a_command_that_was_cut_off_may_write_its_outputs_anew(empty: Workspace, llmos):
    (empty.root / "llmos.yaml").write_text(
        "pipeline: {go: {sh: '[ -e again ] || { echo half > out; touch again; kill -9 $$; }; echo whole > out', outputs: [out]}}\n"
    )
    llmos("trust", "--pipeline")
    assert llmos("run", "-q").code == 1 and (empty.root / "out").read_text() == "half\n"
    assert llmos("run", "-q").code == 0 and (empty.root / "out").read_text() == "whole\n"
