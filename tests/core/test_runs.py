"""Runs: transactions with a folder, processes with a life."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.journal import Journal
from llmos_cli.core.manifest import Made
from llmos_cli.core.records import read_events
from llmos_cli.core.refs import RUNS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import AmbiguousRevision, Conflict, Interrupted, LlmosError, NotFound, Terminated, UsageError
from llmos_cli.events import Event, Metric, Note, Progress

MADE = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")


def events(ws: Workspace, run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ws.root / "runs" / run / "events.jsonl").read_text().splitlines()]


def test_a_run_keeps_its_config_the_files_and_what_happened(ws: Workspace) -> None:
    (ws.configs / "train.yaml").write_text("seed: 1  # mine\n")
    heard: list[Event] = []
    with ws.begin(
        "train", config={"seed": 1, "x": (1e-3, None)}, files=[ws.configs / "train.yaml"], argv=["llmos", "train"]
    ) as run:
        run.listen(heard.append)
        run.emit(Progress("train", 1, 2, values={"loss": 3.25}))
        run.emit(Note("slow disk", level="warning"))
    assert (run.path / "config.yaml").read_text() == "seed: 1\nx:\n- 0.001\n- null\n"
    assert (run.path / "configs" / "train.yaml").read_text() == "seed: 1  # mine\n"
    assert [event["event"] for event in events(ws, run.id)] == ["started", "kept", "progress", "note", "ended"]
    assert [type(event).__name__ for event in heard] == ["Progress", "Note", "Ended"]
    log = [line.split("  ", 1)[1] for line in (run.path / "log.txt").read_text().splitlines()]
    assert log[1:] == ["train 1/2 step loss 3.25", "warning: slow disk", "done"]
    record = ws.runs.find(run.id)
    assert (record.status, record.operation, record.base, record.argv) == ("done", "train", "main", ("llmos", "train"))


def test_commit_moves_the_branch_and_says_so(ws: Workspace) -> None:
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        (staged / "a").write_text("x")
        checkpoint = run.commit(staged, MADE)
    assert ws.resolve("main") == ws.resolve(run.id) == checkpoint.id
    saved = next(event for event in events(ws, run.id) if event["event"] == "saved")
    assert (saved["checkpoint"], saved["moved"], saved["size"], saved["stored"]) == (checkpoint.id, "main", 1, 1)


def test_a_trial_moves_nothing(ws: Workspace, commit: Any) -> None:
    trial = commit(a="x", move=False)
    assert ws.head().checkpoint is None
    assert list(ws.refs.under(RUNS).values()) == [trial.id]


def test_a_branch_that_moved_meanwhile_is_left_alone(ws: Workspace, commit: Any) -> None:
    first = commit(a="1")
    with pytest.raises(Conflict) as caught, ws.begin("train", config={}) as run, ws.stage() as staged:
        second = commit(a="2")
        (staged / "a").write_text("3")
        run.commit(staged, MADE)
    mine = ws.refs.read(RUNS + run.id)
    assert mine and ws.checkpoint(mine[:12]).path.is_dir()
    assert ws.resolve("main") == second.id
    assert caught.value.exit_code == 6
    assert (
        caught.value.message == f"main moved to {second.id[:12]} while this run made {mine[:12]} from {first.id[:12]}"
    )
    assert f"`llmos branch -f main {mine[:12]}`" in caught.value.hint
    assert ws.runs.find(run.id).status == "failed"


def test_what_others_commit_before_a_run_begins_is_not_taken_for_seen(ws: Workspace, commit: Any) -> None:
    first, onto = commit(a="1"), ws.onto()
    second = commit(a="2")
    made = replace(MADE, parents=(first.id,))
    with (
        pytest.raises(Conflict),
        ws.begin("train", config={}, parents=made.parents, onto=onto) as run,
        ws.stage() as staged,
    ):
        (staged / "a").write_text("3")
        run.commit(staged, made)
    assert ws.resolve("main") == second.id


def test_a_detached_head_moves_too(ws: Workspace, commit: Any) -> None:
    from llmos_cli.operations.checkout import checkout

    first = commit(a="1")
    checkout(ws, first.id[:8])
    second = commit(a="2")
    assert (ws.head().branch, ws.head().checkpoint) == (None, second.id)
    assert ws.resolve("main") == first.id


def test_the_branch_of_the_start_moves_though_head_went_elsewhere(ws: Workspace, commit: Any) -> None:
    from llmos_cli.operations.checkout import checkout

    commit(a="1")
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        checkout(ws, create="other")
        (staged / "a").write_text("2")
        checkpoint = run.commit(staged, MADE)
    assert ws.resolve("main") == checkpoint.id
    assert ws.head().branch == "other"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (LlmosError("the loss is NaN", hint="h"), "failed", 1),
        (NotFound("no such file", hint="h"), "failed", 4),
        (ValueError("odd"), "failed", 1),
        (Terminated("terminated by SIGTERM", hint="h"), "terminated", 143),
    ],
)
def test_how_it_ended(ws: Workspace, error: Exception, status: str, code: int) -> None:
    with pytest.raises(type(error)), ws.begin("train", config={}) as run:
        raise error
    record = ws.runs.find(run.id)
    assert (record.status, record.exit_code) == (status, code)


def test_ctrl_c_becomes_interrupted_with_the_way_on(ws: Workspace) -> None:
    with pytest.raises(Interrupted) as caught, ws.begin("train", config={}) as run:
        run.state.mkdir()
        (run.state / "step").write_text("5")
        raise KeyboardInterrupt
    assert (caught.value.exit_code, caught.value.hint) == (130, "`llmos train --resume` goes on where it stopped")
    assert ws.runs.find(run.id).status == "interrupted"
    assert (run.state / "step").exists()


def test_resume_goes_on_in_the_same_folder(ws: Workspace) -> None:
    with pytest.raises(Interrupted), ws.begin("train", config={}) as run:
        raise KeyboardInterrupt
    assert ws.runs.find(run.id).status == "interrupted"
    with ws.runs.resume(run.id) as again:
        assert (again.id, again.base) == (run.id, "main")
        assert ws.runs.find(run.id).status == "running"
        with pytest.raises(Conflict, match="is still running"), ws.runs.resume(run.id):
            pass
        again.state.mkdir()
    assert ws.runs.find(run.id).status == "done"
    assert not run.state.exists()
    with pytest.raises(UsageError, match="is done: there is nothing to resume"), ws.runs.resume(run.id):
        pass


def commit_and_die(ws: Workspace, run: str | None = None, *, text: str, time: str, die: bool) -> str:
    """A run, or one that is resumed, that commits and perhaps is cut off before it can say that it is done."""
    begun = ws.runs.resume(run) if run else ws.begin("train", config={})
    with contextlib.suppress(Terminated), begun as it, ws.stage() as staged:
        (staged / "a").write_text(text)
        it.commit(staged, replace(MADE, time=time))
        if die:
            raise Terminated("cut off", hint="")
    return it.id


def test_a_run_that_is_cut_off_after_its_commit_commits_once(ws: Workspace) -> None:
    run = commit_and_die(ws, text="x", time="2026-11-22T10:45:01Z", die=True)
    (made,) = ws.checkpoints.iterdir()
    assert (ws.resolve(), ws.runs.find(run).status) == (made.name, "terminated")
    assert commit_and_die(ws, run, text="x", time="2026-11-22T10:45:02Z", die=False) == run
    assert (ws.resolve(), [*ws.checkpoints.iterdir()], ws.runs.find(run).status) == (made.name, [made], "done")


def test_what_a_conflict_kept_from_its_branch_is_one_for_the_resumed_run_too(ws: Workspace) -> None:
    with pytest.raises(Conflict), ws.begin("train", config={}) as run, ws.stage() as staged:
        (staged / "a").write_text("x")
        commit_and_die(ws, text="y", time="2026-11-22T10:45:02Z", die=False)
        run.commit(staged, MADE)
    with pytest.raises(Conflict, match="main moved to"):
        commit_and_die(ws, run.id, text="x", time="2026-11-22T10:45:03Z", die=False)
    assert len([*ws.checkpoints.iterdir()]) == 2


def test_find_by_name_prefix_and_ending(ws: Workspace) -> None:
    with ws.begin("deploy", config={}, name="chat") as first:
        pass
    with ws.begin("deploy", config={}, name="chat") as second:
        assert ws.runs.find("chat").id == second.id
        assert ws.runs.find("cha").id == second.id
    assert ws.runs.find(first.id).id == first.id
    assert ws.runs.find(first.id[-4:]).id == first.id
    with pytest.raises(AmbiguousRevision):
        ws.runs.find("20")
    with pytest.raises(NotFound, match="no run is called 'nobody'"):
        ws.runs.find("nobody")


SLEEPER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
try:
    with Workspace.find(Path(sys.argv[1])).begin("train", config={}, argv=[]) as run:
        print(run.id, flush=True)
        time.sleep(60)
except LlmosError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted"), (signal.SIGKILL, -9, "died")],
)
def test_signals(ws: Workspace, number: int, code: int, status: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER), ws.root], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    run = process.stdout.readline().strip()
    assert [record.id for record in ws.runs.alive()] == [run]
    process.send_signal(number)
    # Before it is reaped it is a zombie, which counts as dead.
    while ws.runs.find(run).alive:
        time.sleep(0.01)
    assert ws.runs.find(run).status == status
    assert process.wait() == code
    process.stdout.close()


def test_a_worker_that_is_terminated_does_not_end_the_run(ws: Workspace) -> None:
    with ws.begin("train", config={}) as run:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.write(write, b"ready")
                time.sleep(20)
            finally:
                os._exit(1)
        os.read(read, 5)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert [event["event"] for event in events(ws, run.id)] == ["started", "kept", "ended"]


def test_files_called_the_same_are_all_kept(ws: Workspace, tmp_path: Path) -> None:
    for folder, text in (("a", "1"), ("b", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.yaml").write_text(text)
    with ws.begin("train", config={}, files=[tmp_path / "a" / "train.yaml", tmp_path / "b" / "train.yaml"]) as run:
        pass
    assert {path.name: path.read_text() for path in (run.path / "configs").iterdir()} == {
        "train.yaml": "1",
        "train-2.yaml": "2",
    }


def test_writers_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    def write(number: int) -> None:
        journal = Journal(tmp_path)
        for step in range(200):
            journal.write(Note(f"{number}-{step}-" + "x" * 300))
        journal.close()

    pids = []
    for number in range(3):
        pid = os.fork()
        if not pid:
            write(number)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    heads = {tuple(json.loads(line)["message"].split("-")[:2]) for line in lines}
    assert len(lines) == 600 and heads == {(str(n), str(s)) for n in range(3) for s in range(200)}


def test_a_number_without_a_json_word_is_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(Metric("loss", float("nan")))
    journal.close()
    assert json.loads((tmp_path / "events.jsonl").read_text())["value"] is None


def test_reading_on_from_an_offset_skips_nonsense_and_the_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "note", "at": 1.5}\ngarbage\n{"event": "sa')
    found, offset = read_events(path)
    assert [event["event"] for event in found] == ["note"]
    with path.open("ab") as file:
        file.write(b'ved", "at": 1.5, "checkpoint": "x"}\n')
    assert [event["event"] for event in read_events(path, offset)[0]] == ["saved"]
