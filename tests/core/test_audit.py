"""The audit log: any record that is changed, dropped, swapped, duplicated or cut off is found, and what a crash left is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.audit import Audit, Author, check, parse
from llmos_cli.core.redaction import HIDDEN, command_line
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit, audited
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import push
from llmos_cli.operations.rm import rm
from llmos_cli.operations.tag import delete_tag, tag
from llmos_cli.operations.undo import undo
from tests.conftest import Llmos
from tests.core.conftest import Commit

COUNT = 6


@pytest.fixture(scope="module")
def written(scratch: Path) -> tuple[list[bytes], bytes]:
    """The lines of a log of COUNT records, and its head."""
    dot = scratch / "written"
    dot.mkdir()
    log = Audit(dot)
    for number in range(COUNT):
        log.append(f"tag {number}", Author("me", "here", f"llmos tag {number}"), at=float(number))
    return log.path.read_bytes().splitlines(), (dot / "audit.head").read_bytes()


@pytest.fixture(scope="module")
def log(scratch: Path) -> Audit:
    (scratch / "log").mkdir()
    return Audit(scratch / "log")


def wrong(log: Audit, lines: list[bytes], head: bytes) -> int:
    """The number of the first record that is not right; 0 where all are."""
    log.path.write_bytes(b"".join(line + b"\n" for line in lines))
    (log.path.parent / "audit.head").write_bytes(head)
    return check(log).number


def test_what_was_written_is_right(log, written) -> None:
    assert wrong(log, *written) == 0


@given(st.integers(0, COUNT - 1), st.data())
def test_a_byte_that_changed(log, written, at: int, data: st.DataObject) -> None:
    lines, head = list(written[0]), written[1]
    place = data.draw(st.integers(0, len(lines[at]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda each: each not in (lines[at][place], 10)))
    lines[at] = lines[at][:place] + bytes([byte]) + lines[at][place + 1 :]
    assert wrong(log, lines, head) == at + 1


@given(st.integers(0, COUNT - 1), st.sampled_from(["time", "user", "host", "what", "command", "operation"]))
def test_a_record_that_was_written_anew(log, written, at: int, field: str) -> None:
    """By somebody who knows how to hash: then it is the next one, or the head, that does not follow."""
    lines, head = list(written[0]), written[1]
    record = parse(lines[at])
    assert record is not None
    forged = replace(record, **{field: 9.5 if field == "time" else "another"}).sealed()
    lines[at] = json.dumps(forged.__dict__, sort_keys=True).encode()
    assert wrong(log, lines, head) == min(at + 2, COUNT)


@given(st.integers(0, COUNT - 1))
def test_a_record_that_is_gone(log, written, at: int) -> None:
    assert wrong(log, written[0][:at] + written[0][at + 1 :], written[1]) == at + 1


@given(st.integers(0, COUNT - 1))
def test_an_end_that_is_gone(log, written, left: int) -> None:
    assert wrong(log, written[0][:left], written[1]) == left + 1


@given(st.integers(0, COUNT - 1), st.integers(0, COUNT - 1))
def test_two_that_changed_places(log, written, one: int, other: int) -> None:
    lines = list(written[0])
    lines[one], lines[other] = lines[other], lines[one]
    assert wrong(log, lines, written[1]) == (0 if one == other else min(one, other) + 1)


@given(st.integers(0, COUNT - 1), st.integers(0, COUNT))
def test_one_that_is_there_twice(log, written, which: int, at: int) -> None:
    lines = list(written[0])
    lines.insert(at, written[0][which])
    assert wrong(log, lines, written[1]) == (at + 1 if at != which else which + 2)


@given(st.integers(0, 400))
def test_half_a_record_is_a_crash_and_is_settled(log, written, cut: int) -> None:
    assert wrong(log, *written) == 0
    whole = log.path.read_bytes()
    log.append("tag last", Author("me", "here", "llmos tag last"))
    longer = log.path.read_bytes()
    log.path.write_bytes(longer[: min(len(whole) + cut, len(longer))])
    (log.path.parent / "audit.head").write_bytes(written[1])
    torn = check(log)
    assert (torn.wrong, torn.torn) == ("", log.path.read_bytes() != whole)
    log.append("tag next", Author("me", "here", "llmos tag next"))
    assert not (settled := check(log)).wrong and not settled.torn
    assert settled.records[-1].what == "tag next"


def test_what_was_tampered_with_stays_found_out(log, written) -> None:
    assert wrong(log, written[0][:3] + written[0][4:], written[1]) == 4
    log.append("tag next", Author("me", "here", "llmos tag next"))
    assert check(log).number == 4
    log.path.unlink()
    (log.path.parent / "audit.head").write_bytes(written[1])
    assert check(log).number == 1


# By use


def test_who_did_what(ws: Workspace, commit: Commit, tmp_path: Path, llmos: Llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    first = commit(a="1")
    assert llmos("tag", "base").code == 0
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    push(ws)  # of nothing new, which is no news
    assert llmos("tag", "-d", "base").code == 0
    undo(ws)
    unnamed = commit(a="2", scratch=True, move=False)
    rm(ws, [unnamed.id])
    told = llmos("audit", "--json").json["records"][::-1]
    assert [each["what"] for each in told] == [
        "train on main",
        "tag base",
        "remote add origin",
        "push heads/main to origin",
        "tag -d base",
        "undo tag -d base",
        f"rm {unnamed.id[:12]}",
    ]
    by = {each["what"]: each for each in told}
    assert by["tag base"]["command"] == "llmos tag base"
    assert by["tag base"]["user"] and by["tag base"]["host"]
    assert by["tag base"]["operation"] in {operation.id for operation in ws.oplog.operations()}
    assert llmos("audit", "--verify").out.startswith(f"each of {len(told)} records follows the one before; head ")
    assert "llmos tag base" in llmos("audit").out
    assert len(llmos("audit", "-n", "2", "--json").json["records"]) == 2
    assert first.id == ws.resolve() and fsck(ws).problems == ()


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "edited": lambda dot: edit(dot, lambda lines: [lines[0].replace(b'"what": "', b'"what": "not '), *lines[1:]]),
    "removed": lambda dot: edit(dot, lambda lines: lines[1:]),
    "reordered": lambda dot: edit(dot, lambda lines: lines[::-1]),
    "cut off": lambda dot: edit(dot, lambda lines: lines[:-1]),
    "headless": lambda dot: (dot / "audit.head").unlink(),
    "gone": lambda dot: [(dot / name).unlink() for name in ("audit.head", "audit.jsonl")],
}


def edit(dot: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = dot / "audit.jsonl"
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_exit_5(name: str, ws: Workspace, commit: Commit, llmos: Llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    tag(ws, "one")
    tag(ws, "two")
    TAMPERINGS[name](ws.dot)
    ran = llmos("audit", "--verify")
    assert (ran.code, "record " in ran.err) == (5, True)
    assert [problem.where for problem in fsck(ws).problems] == [".llmos/audit.jsonl"]
    assert llmos("tag", "three").code == 0  # nobody's work waits for it
    assert llmos("audit", "--verify").code == 5


def test_what_could_not_be_recorded_is_recorded_with_the_next(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    tag(ws, "one")
    path, head = ws.dot / "audit.jsonl", ws.dot / "audit.head"
    kept = path.read_bytes(), head.read_bytes()
    tag(ws, "two")  # and then the disk was full
    path.write_bytes(kept[0])
    head.write_bytes(kept[1])
    assert audited(ws).wrong == ""
    delete_tag(ws, "one")
    assert [each.what for each in audit(ws, limit=3).records] == ["tag -d one", "tag two", "tag one"]
    assert audited(ws).wrong == ""


def test_an_older_workspace_begins_one(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    commit(a="2", scratch=True, move=False)
    lines = [json.loads(line) for line in (ws.dot / "operations.jsonl").read_text().splitlines()]
    (ws.dot / "operations.jsonl").write_text("".join(json.dumps({k: v for k, v in line.items() if k != "by"}) + "\n" for line in lines))  # fmt: skip
    for name in ("audit.jsonl", "audit.head"):
        (ws.dot / name).unlink()
    assert audited(ws).wrong == ""
    tag(ws, "one")
    assert [each.what for each in audit(ws).records] == ["tag one"]
    gc(ws, expire="now")
    assert audited(ws).wrong == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/usr/bin/llmos", "tag", "base"], "llmos tag base"),
        (["llmos", "remote", "add", "x", "sftp://me:s3same@host/f"], f"llmos remote add x sftp://me:{HIDDEN}@host/f"),
        (["llmos", "tune", "-s", "tune.storage=postgresql://u:p4ss@h/db"], f"llmos tune -s tune.storage=postgresql://u:{HIDDEN}@h/db"),
        (["llmos", "x", "--api-token", "abc", "-q"], f"llmos x --api-token {HIDDEN} -q"),
        (["llmos", "x", "-s", "a.password=abc"], f"llmos x -s a.password={HIDDEN}"),
        (["llmos", "import", "https://h/m?token=abc&x=1"], f"llmos import https://h/m?token={HIDDEN}&x=1"),
        (["llmos", "x", "hf_abcdefghijkl"], f"llmos x {HIDDEN}"),
        (["llmos", "deploy", "--api-key-file", "keys.txt"], "llmos deploy --api-key-file keys.txt"),
        (["llmos", "sign", "--key", "key.pem"], "llmos sign --key key.pem"),
    ],
)  # fmt: skip
def test_secrets_are_left_out(argv: list[str], told: str) -> None:
    assert command_line(argv) == told
