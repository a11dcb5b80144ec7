"""`llmos compress` that was killed goes on: what it made and measured is found again, and the result has the same bits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.records import EVENTS, RunRecord, read_events
from llmos_cli.operations.compression.notebook import Notebook, Page
from llmos_cli.operations.compression.shapes import WORTH, Shape, best_shape, with_stream

SETS = {
    "data.max_eval_samples": 4, "compress.group_size": 32, "compress.calibration_samples": 8, "compress.probe_samples": 4,
    "compress.cuts": [0.3], "compress.target_kl": 5.0, "compress.heal": 20, "compress.latency": False,
}  # fmt: skip
KILLED = """\
import json, os, signal, sys
from llmos_cli.core import atomic
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.compress import compress
from llmos_cli.operations.config import resolve
from llmos_cli.operations.training import state

publish, save = atomic.publish, state.save

def publish_and_die(folder, final):
    done = publish(folder, final)
    if final.parent.name == "search" and final.name.startswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return done

def save_and_die(*where, **what):
    save(*where, **what)
    if sys.argv[1] == "healing" and what["position"].step == 10:
        os.kill(os.getpid(), signal.SIGKILL)

atomic.publish, state.save = publish_and_die, save_and_die
compress(ws := Workspace.find(), "HEAD", resolve(ws, "compress", flags=json.loads(sys.argv[2])), emit=lambda event: None)
"""


def work(run: RunRecord) -> Counter[tuple[Any, ...]]:
    """What was done to a layer, and how far each stage came, how often."""
    seen = read_events(run.path / EVENTS)[0]
    steps = [event for event in seen if event["event"] == "progress" and event["stage"] != "evaluate"]
    layers = Counter(("layer", event["name"], str(event["values"])) for event in seen if event["event"] == "layer")
    return layers + Counter((event["stage"], event["step"], event["total"]) for event in steps)


@pytest.mark.parametrize(
    "after",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("missed", "cut", "measured-0.3", "healing")), "built-"],
)
def test_a_killed_search_measures_nothing_twice_and_ends_with_the_same_bits(base: Any, llmos: Any, after: str) -> None:
    ws = base()
    tip = ws.resolve()
    killed = subprocess.run([sys.executable, "-c", KILLED, after, json.dumps(SETS)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    run = ws.runs.list()[-1]
    assert ws.resolve() == tip and (run.path / "state" / "search").is_dir()

    refused = llmos("compress", "--resume", "--target-kl", "1")
    assert refused.code == 2 and "as it was begun" in refused.err
    resumed = llmos("compress", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["result"]["run"] == run.id
    assert not (run.path / "state").exists()

    llmos("branch", "-f", "again", tip)
    llmos("checkout", tip)
    whole = llmos("compress", *(f"-s{key}={json.dumps(value)}" for key, value in SETS.items()), "--json")
    assert whole.code == 0, whole.err
    assert whole.json["frontier"] == resumed.json["frontier"]
    trees = [ws.manifest(made.json["result"]["checkpoint"]).tree for made in (resumed, whole)]
    assert trees[0] == trees[1]
    if (
        after != "healing"
    ):  # what was cut off within a page begins again, but for its training, which goes on from its last state
        assert work(ws.runs.find(run.id)) == work(ws.runs.list()[-1])


def test_a_page_is_made_once_and_one_that_failed_is_not_there(tmp_path: Path) -> None:
    made: list[str] = []

    def staged() -> Any:
        (tmp_path / "fresh").mkdir()
        return nullcontext(tmp_path / "fresh")

    notes = Notebook(tmp_path / "notes", staged)

    def make(page: Page) -> dict[str, Any]:
        made.append("x")
        (page.folder / "weights").write_bytes(b"1")
        if len(made) == 1:
            raise RuntimeError("killed")
        return {"kl": 0.1 + 0.2}

    with pytest.raises(RuntimeError):
        notes.once("a", make)
    shutil.rmtree(tmp_path / "fresh")
    notes.unfinished("a").mkdir(parents=True)
    first, again = notes.once("a", make), notes.once("a", make)
    assert made == ["x", "x"] and first == again
    assert again.facts["kl"] == 0.1 + 0.2 and (again.folder / "weights").read_bytes() == b"1"
    assert not notes.unfinished("a").exists()


@pytest.mark.parametrize(
    ("kl", "chosen", "looked"),
    [
        ({0: 0.1, 2: 0.2, 4: 0.11}, 4, [0, 4, 2]),
        ({0: 0.2, 2: 0.1, 4: 0.2}, 2, [0, 4, 2]),
        ({0: 0.1, 2: None, 4: 0.9}, 0, [0, 4]),
        ({0: 0.9, 2: None, 4: 0.1}, 4, [0, 4]),
        ({0: "too little", 2: 0.3, 4: 0.9}, 2, [0, 4, 2]),
    ],
)
def test_the_middle_is_looked_at_only_where_it_may_be_better(kl: Any, chosen: int, looked: list[int]) -> None:
    seen: list[int] = []

    def look(gone: int) -> Shape:
        seen.append(gone)
        found = kl[gone]
        return Shape(gone, refused=found) if isinstance(found, str) else Shape(gone, found)

    assert best_shape(0, 4, look).gone == chosen
    assert seen == looked


def test_the_stream_is_cut_where_the_other_shapes_cost_much_and_it_costs_less() -> None:
    cheap, dear, dearer = Shape(0, WORTH / 2), Shape(1, 0.3), Shape(0, 0.4)
    assert with_stream(cheap, lambda: pytest.fail("it was looked at")) is cheap
    assert with_stream(dearer, lambda: dear) is dear
    assert with_stream(dear, lambda: dearer) is dear
    assert with_stream(dear, lambda: Shape(0, refused="its norms subtract the mean")) is dear
