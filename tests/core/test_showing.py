"""status, show, path, du: what is told of a checkpoint, and how fast."""

from __future__ import annotations

import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmos_cli.core import journal
from llmos_cli.core.refs import HEADS, RUNS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Interrupted, UsageError
from llmos_cli.events import Ended, Event, Metric, Progress, Saved, Started
from llmos_cli.operations.show import show
from llmos_cli.operations.status import CONFIGURED, status
from llmos_cli.operations.summary import age
from llmos_cli.options.verbs import ROOTS
from llmos_cli.ui import render


@pytest.fixture(autouse=True)
def inside(ws, monkeypatch):
    monkeypatch.chdir(ws.root)


def measure(ws: Workspace, checkpoint: str, **values: float) -> None:
    with ws.begin("eval", config={}) as run:
        for name, value in values.items():
            run.emit(Metric(name, value, "test", checkpoint=checkpoint))


def test_status_before_anything(llmos):
    assert llmos("status").out == "on branch main: no checkpoint yet, `llmos train` makes the first\n"


def test_status_tells_where_one_stands(ws, commit, llmos):
    checkpoint = commit(a="x" * 1500)
    measure(ws, checkpoint.id, bits_per_byte=1.871, perplexity=3.66)
    llmos("tag", "base")
    told = llmos("status").out.splitlines()
    assert told[0].startswith(f"on branch main at {checkpoint.id[:12]} (train m, ") and told[0].endswith(", 1.5 kB)")
    assert told[1:3] == ["  also called base", "  bits_per_byte 1.871"]
    assert json.loads(llmos("status", "--json").out)["head"] == {"branch": "main", "checkpoint": checkpoint.id}


def test_status_tells_what_runs(ws, commit):
    checkpoint = commit(a="1")
    with ws.begin("deploy", config={}, parents=[checkpoint.id], name="chat"), ws.begin("train", config={}) as run:
        run.emit(Progress("train", 3, 10))
        told = render(status(ws).view())
        assert "running: deploy chat, just now\n" in told
        assert f"running: train {run.id}, just now, train 3/10\n" in told
    assert status(ws).running == ()


def test_status_tells_of_edited_configs(ws, commit_with_config):
    commit_with_config("seed: 1\n")
    assert status(ws).changed == ()
    (ws.configs / "train.yaml").write_text("seed: 2\n")
    assert status(ws).changed == ("configs/train.yaml",)


def test_status_tells_of_configs_that_are_gone(ws, commit_with_config):
    checkpoint = commit_with_config("seed: 1\n")
    (ws.configs / "train.yaml").unlink()
    with pytest.raises(UsageError), ws.begin("train", config={}):
        raise UsageError("data.task is not set", hint="say it")
    run, _ = ws.index.makers(checkpoint.id)[0]
    told = f"missing: configs/train.yaml, runs/{run}/configs/train.yaml is what a run was given last\n"
    assert told in render(status(ws).view())
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    assert status(ws).missing == ()


def test_every_verb_with_a_config_is_looked_for():
    assert set(CONFIGURED) == set(ROOTS)


@pytest.mark.parametrize("operation", ["train", "prune"])
def test_status_tells_what_can_go_on(ws, operation):
    with pytest.raises(Interrupted), ws.begin(operation, config={}) as run:
        run.state.mkdir()
        (run.state / "step").write_text("5")
        raise KeyboardInterrupt
    assert status(ws).resumable == run.id
    assert f"interrupted: {run.id}, `llmos {operation} --resume` goes on" in render(status(ws).view())
    with ws.runs.resume(run.id):
        pass
    assert status(ws).resumable is None


def test_status_sets_how_files_are_shared_apart(ws, commit):
    commit(a="1")
    with pytest.raises(Interrupted), ws.begin("train", config={}) as run:
        run.state.mkdir()
        (run.state / "step").write_text("5")
        raise KeyboardInterrupt
    blocks = [block.split(":")[0] for block in render(status(ws).view()).split("\n\n")]
    assert blocks[1:] == ["interrupted", "storage"]


def test_log_takes_no_nonsense(llmos, commit):
    commit(a="1")
    assert [llmos("log", "-n", limit).code for limit in ("1", "0", "-1", "many")] == [0, 2, 2, 2]


def test_show_tells_everything(ws, commit, llmos):
    first, second = commit(a="same", b="1"), commit("prune", a="same", b="2")
    measure(ws, second.id, accuracy=0.93)
    found = show(ws)
    assert (found.checkpoint.parents, found.stored, len(found.runs)) == ((first.id,), 1, 1)
    assert [(each.name, each.split, each.value) for each in found.metrics] == [("accuracy", "test", 0.93)]
    told = llmos("show").out
    for words in (
        f"checkpoint {second.id}",
        "size       5 B, 1 B newly stored",
        "  prune.method: m",
        "accuracy  test    0.93",
    ):
        assert words in told
    assert llmos("show", "--json").json["files"]["b"]["size"] == 1


def test_path_is_where_the_files_are(ws, commit, llmos):
    checkpoint = commit(a="1")
    assert llmos("path").out == f"{checkpoint.path}\n"
    (checkpoint.path / "a").unlink()
    assert llmos("path").code == 5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "just now"), (30, "30 seconds ago"), (90, "1 minute ago"), (7300, "2 hours ago"), (86400 * 40, "1 month ago")],
)
def test_age(seconds, words):
    assert age("2026-11-22T10:00:00Z", now=1795341600 + seconds) == words


def test_log_of_two_thousand_checkpoints_is_quick(ws, llmos):
    """At most twice `llmos --version`, with a fifth more for the noise of the machine."""
    grow(ws, 2000)
    assert len(llmos("log", "-n", "20").out.splitlines()) == 20  # the index is made here, once
    time.sleep(2.1)
    assert llmos("log", "-n", "1").code == 0
    program = Path(sys.executable).parent / "llmos"
    log, version = ([program, "log", "-n", "20"], [program, "--version"])
    seconds = [(cpu(log), cpu(version)) for _ in range(5)]
    ratio = statistics.median(pair[0] for pair in seconds) / statistics.median(pair[1] for pair in seconds)
    assert ratio <= 2 * 1.2, seconds


LIGHT = ("status", "log", "show", "tag", "branch", "checkout", "rm", "du", "path", "fsck", "gc", "undo", "redo", "op")


def test_nothing_heavy_is_imported_for_the_light_verbs():
    imports = "; ".join(f"import llmos_cli.operations.{verb}" for verb in LIGHT)
    heavy = "{'torch', 'transformers', 'datasets', 'optuna', 'pydantic', 'yaml', 'rich', 'rfc8785'} & set(sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; {imports}; print({heavy})"], capture_output=True, text=True, check=True
    )
    assert told.stdout == "set()\n"


def cpu(command: list[object]) -> float:
    def children() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = children()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return children() - before


def grow(ws: Workspace, count: int) -> None:
    """A long line of checkpoints with their runs, written plainly: committing them one by one would take minutes."""
    parents: list[str] = []
    (ws.dot / RUNS).mkdir()
    for number in range(count):
        at = 1.79e9 + 60 * number
        checkpoint = hashlib.sha256(str(number).encode()).hexdigest()  # computing true ids would take most of the time
        shards = (f"model-{shard:05d}-of-00008.safetensors" for shard in range(1, 9))
        made = {
            "operation": "prune",
            "parents": parents,
            "config": {"prune": {"method": "wanda", "sparsity": 0.5}},
            "data": {},
            "environment": {},
            "seed": 0,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)),
        }
        tree = {shard: {"sha256": "0" * 64, "size": 1000} for shard in shards}
        (ws.checkpoints / checkpoint).mkdir()
        (ws.checkpoints / checkpoint / "manifest.json").write_text(
            json.dumps({"id": checkpoint, "tree": tree, "made": made})
        )
        run = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(at))}-prune-{number:04x}"
        events: list[Event] = [
            Started(run, "prune", 1, 1.0, "elsewhere", "main", at=at),
            Saved(checkpoint, "main", 20_000, 1000, at=at),
            Metric("bits_per_byte", 1.5, "test", checkpoint=checkpoint, at=at),
            Ended("done", at=at),
        ]
        (ws.root / "runs" / run).mkdir()
        (ws.root / "runs" / run / "events.jsonl").write_text("".join(map(journal.line, events)))
        (ws.dot / RUNS / run).write_text(checkpoint + "\n")
        parents = [checkpoint]
    ws.refs.write(HEADS + "main", parents[0])
