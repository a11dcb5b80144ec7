"""What a run had written when it ended is known outside of its folder: events that are gone, cut off or forged are found, with their end or without."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmos_cli.core.processes import Process
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import push


@pytest.fixture
def events(ws: Workspace, commit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a run that committed a checkpoint, and is done."""
    monkeypatch.chdir(ws.root)
    (run, _), *_ = ws.index.makers(commit(a="1").id)
    return ws.root / "runs" / run / "events.jsonl"


def cut(text: bytes, *, lines: int) -> bytes:
    return b"".join(text.splitlines(keepends=True)[:lines])


def forged(text: bytes) -> bytes:
    return re.sub(rb'"stored": \d+', b'"stored": 7', b"".join(_without(text, b'"ended"')))


def _without(text: bytes, what: bytes) -> list[bytes]:
    return [line for line in text.splitlines(keepends=True) if what not in line]


HARMS = {
    "nothing": lambda text: b"",
    "bytes": lambda text: b"\xff\x00\xfe{",
    "the first line": lambda text: cut(text, lines=1),
    "half": lambda text: cut(text, lines=len(text.splitlines()) // 2),
    "forged without its end": forged,
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_left_of_a_run_is_not_what_it_wrote(ws: Workspace, events: Path, llmos, harm: str) -> None:
    assert llmos("fsck").code == 0
    events.write_bytes(HARMS[harm](events.read_bytes()))
    told = llmos("fsck")
    assert told.code == 5 and "1 thing is damaged" in told.err
    assert f"runs/{events.parent.name}/events.jsonl" in told.out and "was edited" in told.out


@pytest.mark.parametrize("harm", HARMS)
def test_it_comes_back_from_a_remote_and_is_found_in_a_clone_too(
    ws: Workspace, events: Path, llmos, monkeypatch, tmp_path, harm
) -> None:
    monkeypatch.setattr(Process, "alive", lambda self: False)  # this one is, and without an end the run would be
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    good, copy = events.read_bytes(), tmp_path / "copy" / events.relative_to(ws.root)
    assert copy.read_bytes() == good
    for path in (events, copy):
        monkeypatch.chdir(path.parent)
        path.write_bytes(HARMS[harm](good))
        assert llmos("fsck").code == 5
        assert llmos("fsck", "--repair").code == 0 and path.read_bytes() == good


def test_nothing_is_kept_of_events_that_do_not_say_whose_they_are(ws: Workspace, events: Path, llmos) -> None:
    events.write_bytes(b"{}\n")
    told = llmos("fsck", "--accept-loss", f"runs/{events.parent.name}/events.jsonl")
    assert told.code == 4 and f"move runs/{events.parent.name} out of the workspace" in told.err


def test_what_is_left_is_given_up_by_name(ws: Workspace, events: Path, llmos) -> None:
    events.write_bytes(cut(events.read_bytes(), lines=2))
    assert llmos("fsck", "--accept-loss", f"runs/{events.parent.name}/events.jsonl").code == 0
    said = llmos("fsck")
    assert said.code == 0 and "was given up" in said.out
    assert not ws.ledger.all()[events.parent.name].own


def test_a_run_that_was_killed_before_its_end_is_no_damage(ws: Workspace, events: Path) -> None:
    """After its commit, whether or not it lived to say so: `refs/runs/` names what it had made by then."""
    ws.ledger.path.unlink()
    whole = events.read_bytes()
    events.write_bytes(b"".join(_without(whole, b'"ended"')))
    assert fsck(ws).problems == ()
    events.write_bytes(b"".join(line for line in _without(whole, b'"ended"') if b'"saved"' not in line))
    assert fsck(ws).problems == ()


def test_without_a_ledger_a_run_must_begin_and_say_what_it_saved(ws: Workspace, events: Path) -> None:
    ws.ledger.path.unlink()
    whole = events.read_bytes()
    assert fsck(ws).problems == (), "it is of before"
    for harm in (b"", b"\xff\x00\xfe{", b"".join(_without(whole, b'"started"'))):
        events.write_bytes(harm)
        assert fsck(ws).problems, harm
    *before, end = _without(whole, b'"saved"')
    old = {key: value for key, value in json.loads(end).items() if key not in ("bytes", "sha256")}
    events.write_bytes(b"".join(before) + json.dumps(old).encode() + b"\n")
    (problem,) = fsck(ws).problems
    assert "do not say that the run saved" in problem.what


def test_every_byte_of_the_ledger(ws: Workspace, events: Path) -> None:
    text = ws.ledger.path.read_bytes()
    assert ws.ledger.all().keys() == {events.parent.name}
    for at in range(len(text) - 1):
        ws.ledger.path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        assert ws.ledger.all() == {} and ws.ledger.damaged()


@pytest.mark.parametrize("text", [b"\0" * 40, b"\xff\xfe\x80\n", b"[1]\n", b"null\n", b"[" * 200_000, b'{"a": 1}\n'])
def test_what_is_no_ledger_is_damage(ws: Workspace, events: Path, text: bytes) -> None:
    ws.ledger.path.write_bytes(text)
    assert ws.ledger.damaged() == [1] and ws.ledger.all() == {}


def test_a_ledger_that_was_edited_accuses_nobody(ws: Workspace, events: Path, commit, llmos) -> None:
    commit(a="2")
    text = ws.ledger.path.read_bytes()
    ws.ledger.path.write_bytes(text.replace(b'"sha256": "', b'"sha256": "0', 1))
    told = llmos("fsck")
    assert told.code == 5 and "line 1 was edited" in told.out and "events.jsonl" not in told.out
    assert llmos("fsck", "--repair").code == llmos("fsck").code == 0
    assert ws.ledger.path.read_bytes() == text.splitlines(keepends=True)[1]
    assert [each.read_bytes() for each in (ws.dot / "aside").iterdir()] != []


def test_half_a_line_that_a_crash_left_is_passed_over(ws: Workspace, events: Path, commit) -> None:
    with ws.ledger.path.open("ab") as file:
        file.write(b'{"hash": "12')
    commit(a="2")
    assert len(ws.ledger.all()) == 2 and fsck(ws).problems == ()
