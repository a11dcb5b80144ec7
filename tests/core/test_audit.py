"""The audit log: any record that is changed, dropped, swapped, duplicated or cut off is found, and what a crash left is not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.audit import Audit, Author, check, parse
from llmos_cli.core.redaction import HIDDEN, command_line
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit, audited
from llmos_cli.operations.backup import backup
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import delete, push
from llmos_cli.operations.rm import rm
from llmos_cli.operations.stop import stop
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
        by, logged = Author("me", "here", f"llmos tag {number}"), b"a line" if number % 2 else b""
        log.append(f"tag {number}", by, operation=str(number), line=logged, at=float(number))
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


@given(st.integers(0, COUNT - 1), st.sampled_from(["time", "user", "host", "what", "command", "operation", "line"]))
def test_a_record_that_was_written_anew(log, written, at: int, field: str) -> None:
    """By somebody who knows how to hash: then it is the next one, or the head, that does not follow."""
    lines, head = list(written[0]), written[1]
    record = parse(lines[at])
    assert record is not None
    forged = replace(record, **{field: 9.5 if field == "time" else "another"}).sealed()
    lines[at] = forged.written()
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
    left = log.path.read_bytes()
    torn = check(log)
    complete = len(left) >= len(longer) - 1  # but for its newline it is all there
    assert (torn.wrong, torn.ahead, bool(torn.torn)) == ("", complete, left != whole and not complete)
    log.append("tag next", Author("me", "here", "llmos tag next"))
    assert log.path.read_bytes().startswith(left), "nothing is ever cut off"
    settled = check(log)
    assert (settled.wrong, settled.ahead, settled.torn) == ("", False, torn.torn)
    assert [each.what for each in settled.records[COUNT:]] == [*(["tag last"] if complete else []), "tag next"]


@given(st.integers(1, COUNT), st.binary(min_size=1, max_size=40).filter(lambda each: b"\n" not in each))
def test_nonsense_between_two_records(log, written, at: int, nonsense: bytes) -> None:
    """Half a record begins as the next one would; whatever else stands there was put there."""
    half = nonsense == b'{"before": "'[: len(nonsense)]
    lines = [*written[0][:at], nonsense, *written[0][at:]]
    assert wrong(log, lines, written[1]) == (0 if half else at + 1)


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


def test_who_trusted_stopped_repaired_deleted_cloned_and_restored(
    ws: Workspace, commit: Commit, tmp_path: Path, llmos: Llmos, monkeypatch
) -> None:
    monkeypatch.chdir(ws.root)
    first = commit(a="1")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    backup(ws)
    (ws.root / "code.py").write_text("x = 1\n")
    assert llmos("trust", "code.py").code == llmos("trust", "--revoke", "code.py").code == 0
    served = os.fork()
    if not served:
        with contextlib.suppress(LlmosError), ws.begin("deploy", config={}, name="chat"):
            time.sleep(60)
        os._exit(0)
    threading.Thread(target=os.waitpid, args=(served, 0)).start()
    while not ws.runs.alive():
        time.sleep(0.01)
    stop(ws, "chat")
    (first.path / "a").unlink()
    shutil.rmtree(ws.objects.directory)
    assert llmos("fsck", "--repair").code == 0
    delete(ws, ["main"])
    digest = hashlib.sha256(b"x = 1\n").hexdigest()[:12]
    assert [each.what for each in audit(ws, limit=5).records[::-1]] == [
        f"trust code.py ({digest})",
        "trust --revoke code.py",
        "stop chat",
        f"fsck --repair: checkpoints/{first.id[:12]}/a",
        "push --delete heads/main to origin",
    ]
    assert audited(ws).wrong == ""
    for verb in ("restore", "clone"):
        assert llmos(verb, tmp_path / "far", tmp_path / verb).code == 0
        other = Workspace.find(tmp_path / verb)
        assert audit(other, limit=1).records[0].what.startswith(f"{verb} ") and audited(other).wrong == ""


def test_a_history_that_was_written_anew_is_found_by_who_verified_before(
    ws: Workspace, commit: Commit, llmos: Llmos, monkeypatch
) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    tag(ws, "one")
    first = llmos("audit", "--verify", "--json").json
    tag(ws, "two")
    again = llmos("audit", "--verify")
    assert f"the first {first['records']} are those that you verified before" in again.out
    assert llmos("audit", "--verify", "--head", first["head"]).code == 0
    assert llmos("audit", "--verify", "--head", "ab" * 32).code == 5
    # By somebody who knows how: the log, its head and the log of operations, all of them consistent.
    lines = [line for line in ws.oplog.path.read_bytes().splitlines() if b'"tag one"' not in line]
    ws.oplog.path.write_bytes(b"\n".join(lines) + b"\n")
    (ws.dot / "audit.head").unlink()
    ws.oplog.audit.path.unlink()
    for operation in ws.oplog.operations():
        ws.oplog.audit.append(operation.name, Author("me", "here", "llmos"), operation=operation.id, logged=True)
    assert audited(ws).wrong == ""
    found = llmos("audit", "--verify")
    assert (found.code, "is not the one that you verified" in found.err) == (5, True)
    assert llmos("audit", "--verify", "--head", first["head"]).code == 5


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
