"""What a run has written is what it had written when it ended: any byte that is another is found, and what goes on after it is not."""

from __future__ import annotations

import json

import pytest

from llmos_cli.core.endings import altered, closed
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Interrupted
from llmos_cli.events import Metric, Progress
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push


def measured(ws: Workspace, checkpoint: str) -> str:
    with ws.begin("eval", config={}, parents=[checkpoint]) as run:
        run.emit(Progress("eval", 1, 2))
        run.emit(Metric("loss", 1.5, "test", checkpoint=checkpoint))
    return run.id


def test_a_forged_number_is_found(ws, commit, llmos, monkeypatch, tmp_path):
    checkpoint = commit(a="1")
    path = ws.root / "runs" / measured(ws, checkpoint.id) / "events.jsonl"
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    assert fsck(ws).problems == fsck(Workspace.find(tmp_path / "copy")).problems == ()
    path.write_text(path.read_text().replace('"value": 1.5', '"value": 0.5'))
    monkeypatch.chdir(ws.root)
    told = llmos("fsck")
    assert told.code == 5 and "was edited: it is not what the run had written when it ended" in told.out
    assert [problem.where for problem in fsck(ws).problems] == [str(path.relative_to(ws.root))]


def test_what_was_edited_comes_back_from_a_remote_that_it_was_sent_to(ws, commit, llmos, monkeypatch, tmp_path):
    checkpoint = commit(a="1")
    path = ws.root / "runs" / measured(ws, checkpoint.id) / "events.jsonl"
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    good = path.read_bytes()
    monkeypatch.chdir(ws.root)
    for harm in (
        lambda: path.write_bytes(good.replace(b"1.5", b"0.5")),
        path.unlink,
        lambda: path.write_bytes(b"{\n" + good),
    ):
        harm()
        told = llmos("fsck", "--repair")
        assert told.code == 0 and f"repaired {path.relative_to(ws.root)} from origin" in told.out
        assert path.read_bytes() == good and ws.index.metrics(checkpoint.id)["loss", "test"].value == 1.5


@pytest.mark.parametrize("says", ["nonsense", '{"run": "RUN", "checkpoint": "", "tree": {}}'])
def test_a_remote_that_says_nonsense_of_a_run_repairs_nothing(ws, commit, llmos, monkeypatch, tmp_path, says):
    run = measured(ws, commit(a="1").id)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    there = next(path for path in (tmp_path / "far" / "runs").iterdir() if run in path.name)
    there.chmod(0o644)
    there.write_text(says.replace("RUN", run))
    path = ws.root / "runs" / run / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"0.5"))
    monkeypatch.chdir(ws.root)
    told = llmos("fsck", "--repair")
    assert told.code == 5 and "unexpectedly" not in told.err and "was edited" in told.out


def test_of_a_run_that_went_on_since_it_was_sent_a_remote_has_too_little(ws, commit, llmos, monkeypatch, tmp_path):
    path = ws.root / "runs" / measured(ws, commit(a="1").id) / "events.jsonl"
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    first = path.read_bytes()
    second = first + first.splitlines(keepends=True)[0]
    edited = (second + closed('{"event": "ended", "at": 2.0, "status": "done"}\n', second).encode()).replace(
        b"1.5", b"0.5"
    )
    path.write_bytes(edited)
    monkeypatch.chdir(ws.root)
    assert llmos("fsck", "--repair").code == 5 and path.read_bytes() == edited


def test_what_was_edited_is_given_up_by_name(ws, commit, llmos, monkeypatch):
    """What happened stays as it reads now; what was measured is proven no more, and what cannot be read goes. What was there is kept."""
    checkpoint = commit(a="1")
    path = ws.root / "runs" / measured(ws, checkpoint.id) / "events.jsonl"
    where = str(path.relative_to(ws.root))
    monkeypatch.chdir(ws.root)
    whole = llmos("fsck", "--accept-loss", where)
    assert whole.code == 2 and f"nothing is wrong with {where}" in whole.err
    edited = path.read_bytes().replace(b"1.5", b"0.5").replace(b"\n", b"\nhalf of {\n", 1)
    path.write_bytes(edited)
    told = llmos("fsck", "--repair")
    assert told.code == 5 and f"`llmos fsck --accept-loss {where}`" in told.err
    assert llmos("fsck", "--accept-loss", where).code == 0
    said = llmos("fsck")
    assert (said.code, f"{where} was given up: it is not what was there once" in said.out) == (0, True)
    assert Workspace.find(ws.root).index.metrics(checkpoint.id) == {}
    assert b"half of" not in path.read_bytes() and ws.runs.find(path.parent.name).status == "done"
    assert [each.read_bytes() for each in (ws.dot / "aside").iterdir()] == [edited]
    assert f"fsck --accept-loss {where}" in llmos("audit", "-n", "1").out


def test_a_run_whose_events_are_gone_goes_as_is_said(ws, commit, llmos, monkeypatch, tmp_path):
    checkpoint = commit(a="1")
    run, _ = ws.index.makers(checkpoint.id)[0]
    (ws.root / "runs" / run / "events.jsonl").unlink()
    monkeypatch.chdir(ws.root)
    told = llmos("fsck", "--accept-loss", f"runs/{run}/events.jsonl")
    assert told.code == 4 and f"move runs/{run} out of the workspace" in told.err
    (ws.root / "runs" / run).rename(tmp_path / run)
    assert llmos("fsck", "--repair").code == 0


def test_what_a_run_still_writes_is_not_given_up(ws, llmos, monkeypatch):
    monkeypatch.chdir(ws.root)
    with ws.begin("eval", config={}) as run:
        path = run.path / "events.jsonl"
        path.write_bytes(b"{\n" + path.read_bytes())
        refused = llmos("fsck", "--accept-loss", f"runs/{run.id}/events.jsonl")
        assert refused.code == 6 and "is still running" in refused.err
        path.write_bytes(path.read_bytes()[2:])


def test_what_was_edited_is_sent_to_nobody(ws, commit, llmos, monkeypatch, tmp_path):
    run = measured(ws, commit(a="1").id)
    path = ws.root / "runs" / run / "events.jsonl"
    path.write_bytes(path.read_bytes().replace(b"1.5", b"0.5"))
    remotes.add(ws, "origin", str(tmp_path / "far"))
    monkeypatch.chdir(ws.root)
    told = llmos("push", "--all")
    assert told.code == 0 and f"run {run} stays here: events.jsonl was edited" in told.err
    clone(str(tmp_path / "far"), tmp_path / "copy")
    assert run not in [each.id for each in Workspace.find(tmp_path / "copy").runs.list()]


def test_every_byte_of_it(ws, commit):
    path = ws.root / "runs" / measured(ws, commit(a="1").id) / "events.jsonl"
    text = path.read_bytes()
    assert altered(text) == []
    for at in range(len(text) - 1):
        for other in (text[at] ^ 1, text[at] ^ 16):
            changed = text[:at] + bytes([other]) + text[at + 1 :]
            assert altered(changed) or not all(map(_is_json, changed.split(b"\n")[:-1])), (
                at,
                changed[at - 20 : at + 20],
            )
        assert altered(text[:at] + text[at + 1 :]) or not all(
            map(_is_json, (text[:at] + text[at + 1 :]).split(b"\n")[:-1])
        )


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def test_a_resumed_run_ends_again(ws):
    with pytest.raises(Interrupted), ws.begin("train", config={}) as run:
        (run.state).mkdir()
        (run.state / "x").write_text("x")
        run.emit(Progress("train", 1, 2))
        raise KeyboardInterrupt
    with ws.runs.resume(run.id) as again:
        again.emit(Progress("train", 2, 2))
    path = run.path / "events.jsonl"
    assert path.read_bytes().count(b', "sha256": ') == 2 and fsck(ws).problems == ()
    first, last = (path.read_text().replace(f'"step": {step}', '"step": 7', 1) for step in (1, 2))
    assert len(altered(first.encode())) == 2 and len(altered(last.encode())) == 1


def test_an_end_of_before_and_what_comes_after_one_are_as_good(ws, commit):
    path = ws.root / "runs" / measured(ws, commit(a="1").id) / "events.jsonl"
    *events, end = path.read_text().splitlines(keepends=True)
    old = {key: value for key, value in json.loads(end).items() if key not in ("bytes", "sha256")}
    ws.ledger.path.unlink()  # which is not of before
    path.write_text("".join(events) + json.dumps(old) + "\n")
    assert fsck(ws).problems == ()
    text = "".join(events)
    path.write_text(text + closed(json.dumps(old) + "\n", text.encode()) + events[1])
    assert fsck(ws).problems == ()
