"""A damaged log begins anew where somebody says so, and only there: what was in it is kept, and the break stays known."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit, audited, verify
from llmos_cli.operations.backup import backup
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.integrity.begun_anew import AUDIT, OPERATIONS, begin_anew
from llmos_cli.operations.restore import restore
from llmos_cli.operations.tag import delete_tag, tag
from llmos_cli.operations.undo import undo


def edited(path: Path, number: int, old: bytes, new: bytes) -> bytes:
    """A line of it says something else; what the file was then."""
    lines = path.read_bytes().split(b"\n")
    assert old in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new)
    path.write_bytes(b"\n".join(lines))
    return path.read_bytes()


@pytest.fixture
def named(ws: Workspace, commit) -> Workspace:
    commit(a="1")
    for name in ("one", "two", "three"):
        tag(ws, name)
    return ws


def test_the_audit_log_begins_anew_and_tells_it(named, llmos, monkeypatch, tmp_path):
    head = verify(named).head
    bad = edited(named.oplog.audit.path, 2, b"one", b"uno")
    monkeypatch.chdir(named.root)
    assert llmos("audit", "--verify").code == llmos("fsck").code == 5
    assert llmos("fsck", "--repair").code == 5 and named.oplog.audit.path.read_bytes() == bad
    done = llmos("fsck", "--accept-loss", AUDIT)
    assert done.code == 0 and "the audit log was begun anew on 20" in done.out
    kept = named.dot / "aside" / hashlib.sha256(bad).hexdigest()
    assert kept.read_bytes() == bad and kept.name in done.out
    told = llmos("audit", "--verify")
    assert told.code == 0 and "was begun anew on 20" in told.out and kept.name in told.out
    assert "begins anew" in audit(named).records[0].what and audit(named).records[0].before == kept.name
    tag(named, "four")
    undo(named)
    assert audited(named).wrong == "" and [record.number for record in audit(named).records] == [3, 2, 1]
    assert verify(named, head=head).since and llmos("fsck").code == 0
    remotes.add(named, "origin", str(tmp_path / "far"))
    backup(named)
    restore(str(tmp_path / "far"), tmp_path / "back")
    assert verify(Workspace.find(tmp_path / "back")).breaks == verify(named).breaks


def test_who_verified_it_before_goes_on_from_what_is_kept(named, tmp_path, monkeypatch):
    """Each user remembers what was verified; the one who begins it anew is not the only one."""
    monkeypatch.setenv("LLMOS_CONFIG_HOME", str(tmp_path / "another's"))
    verify(named)
    monkeypatch.setenv("LLMOS_CONFIG_HOME", str(tmp_path / "mine"))
    edited(named.oplog.audit.path, 2, b"one", b"uno")
    begin_anew(named, [AUDIT])
    for whose in ("mine", "another's"):
        monkeypatch.setenv("LLMOS_CONFIG_HOME", str(tmp_path / whose))
        assert verify(named).breaks
    shutil.rmtree(named.dot / "aside")
    with pytest.raises(Corrupt, match=r"record 1 follows what was set aside .* not there or was altered"):
        verify(named)


@pytest.mark.parametrize("at", [0, 70, -2])
def test_what_is_kept_is_checked(named, at):
    bad = bytearray(edited(named.oplog.audit.path, 2, b"one", b"uno"))
    begin_anew(named, [AUDIT])
    bad[at] ^= 1
    (named.dot / "aside" / audit(named).records[0].before).write_bytes(bad)
    assert AUDIT in [problem.where for problem in fsck(named).problems]


def test_a_second_break_keeps_the_first(named):
    for what in (b"one", b"begins"):
        edited(named.oplog.audit.path, 2 if what == b"one" else 1, what, b"other")
        begin_anew(named, [AUDIT])
        tag(named, what.decode())
    assert len(verify(named).breaks) == 2 and fsck(named).problems == ()
    (named.dot / "audit.head").unlink()
    begin_anew(named, [AUDIT])
    named.oplog.audit.path.unlink()
    begin_anew(named, [AUDIT])
    assert fsck(named).problems == ()


def test_an_operation_that_loses_its_record_after_the_break_is_found(named):
    edited(named.oplog.audit.path, 2, b"one", b"uno")
    begin_anew(named, [AUDIT])
    before = [named.oplog.audit.path.read_bytes(), (named.dot / "audit.head").read_bytes()]
    tag(named, "four")
    tag(named, "five")
    for name, text in zip(("audit.jsonl", "audit.head"), before, strict=True):
        (named.dot / name).write_bytes(text)
    assert "should be there" in audited(named).wrong


def test_the_log_of_operations_begins_anew_where_refs_are(named, commit, llmos, monkeypatch):
    """The damaged line said that a tag had gone."""
    delete_tag(named, "two")
    second = commit(a="2")
    count = len(list(named.oplog.operations()))
    bad = edited(named.oplog.path, count - 1, b'"id"', b'"di"')
    monkeypatch.chdir(named.root)
    assert llmos("fsck").code == 5
    assert llmos("fsck", "--accept-loss", OPERATIONS).code == 0
    assert (named.dot / "aside" / hashlib.sha256(bad).hexdigest()).read_bytes() == bad
    assert sorted(named.refs.names("refs/tags/")) == ["one", "three"] and named.head().checkpoint == second.id
    last = list(named.oplog.operations())[-1]
    assert hashlib.sha256(bad).hexdigest() in last.name and [each.what for each in last.changes] == ["refs/tags/two"]
    assert hashlib.sha256(bad).hexdigest() in audit(named).records[0].what
    assert fsck(named, repair=True).problems == () and gc(named).garbage == () and verify(named).records
    tag(named, "four")
    assert llmos("undo").code == 0 and llmos("fsck").code == 0


def test_a_log_that_is_gone_is_told_once(named):
    """Not once more for each of its operations and of the refs that they made."""
    named.oplog.path.unlink()
    assert [problem.where for problem in fsck(named).problems] == [OPERATIONS]


def test_both_logs_gone(named):
    for path in (named.oplog.path, named.oplog.audit.path):
        path.unlink()
    assert {AUDIT, OPERATIONS} <= {problem.where for problem in fsck(named).problems}
    assert fsck(named, accept_loss=[OPERATIONS, AUDIT]).problems == ()
    assert sorted(named.refs.names("refs/tags/")) == ["one", "three", "two"]


def test_a_log_that_is_whole_does_not_begin_anew(named):
    before = {path: path.read_bytes() for path in named.dot.iterdir() if path.is_file() and "index" not in path.name}
    for log in (AUDIT, OPERATIONS):
        with pytest.raises(UsageError, match="as it was written"):
            fsck(named, accept_loss=[log])
    assert {path: path.read_bytes() for path in before} == before and not (named.dot / "aside").exists()


def test_what_repairing_leaves_names_the_way_that_fits(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    first, second = commit(a="1"), commit(a="2")
    ws.refs.write("refs/tags/mine", first.id)
    left = llmos("fsck", "--repair")
    assert "`llmos tag -d mine` takes it away" in left.out and "--accept-loss" not in left.err
    ws.refs.write("refs/tags/mine", None)
    text = ws.oplog.path.read_text()
    ws.oplog.path.write_text(text.replace(f'"before": "{first.id}"', '"before": null'))
    torn = llmos("fsck", "--repair")
    assert "--accept-loss .llmos/operations.jsonl` begins the damaged log anew" in torn.err
    assert "gives up a checkpoint" not in torn.err
    ws.oplog.path.write_text(text)
    shutil.rmtree(second.path)
    gone = llmos("fsck", "--repair")
    assert f"--accept-loss {second.id[:12]}` gives up a checkpoint" in gone.err and "damaged log" not in gone.err


def test_what_is_only_strange_is_no_loss(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    made = commit(a="1")
    os.mkfifo(made.path / "pipe")
    left = llmos("fsck", "--repair")
    assert left.code == 5 and "does not belong to the checkpoint" in left.out and "--accept-loss" not in left.err


LOGS = ("audit.jsonl", "audit.head", "operations.jsonl")


def take_away_logs(ws: Workspace) -> None:
    for name in LOGS:
        (ws.dot / name).unlink()


def test_logs_that_were_taken_away_are_missed(ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.root)
    assert llmos("audit", "--verify").code == llmos("fsck").code == 0  # nothing was done yet
    commit(a="1")
    for lost, said in ((LOGS, "branch main is there"), (LOGS[:2], "operation")):
        kept = {name: (ws.dot / name).read_bytes() for name in lost}
        for name in lost:
            (ws.dot / name).unlink()
        verified = llmos("audit", "--verify")
        assert verified.code == 5
        assert verified.err.startswith(
            f"error: the audit log is not what was written: record 1 is missing, and all after it: {said}"
        )
        assert ".llmos/audit.jsonl" in {each.where for each in fsck(ws).problems}
        for name, text in kept.items():
            (ws.dot / name).write_bytes(text)
    assert llmos("audit", "--verify").code == llmos("fsck").code == 0


def test_what_runs_moved_and_where_head_is_show_it_too(
    ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    for name in (*LOGS, "refs/heads/main"):
        (ws.dot / name).unlink()
    assert "moved main" in llmos("audit", "--verify").err
    (ws.dot / "HEAD").write_text("ref: refs/heads/other\n")
    assert "HEAD is at other" in llmos("audit", "--verify").err


def test_both_are_begun_anew_by_name(ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    take_away_logs(ws)
    told = fsck(ws).problems
    assert [(each.where, each.what) for each in told] == [
        (".llmos/operations.jsonl", "is missing, and branch main is there"),
        (".llmos/audit.jsonl", "record 1 is missing, and all after it: branch main is there"),
    ]
    assert llmos("fsck", "--accept-loss", ".llmos/audit.jsonl", "--accept-loss", ".llmos/operations.jsonl").code == 0
    assert llmos("audit", "--verify").code == llmos("fsck").code == 0


def test_a_workspace_that_is_older_than_the_audit_log_has_none(
    ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1"), commit(a="2")
    said = [json.loads(line) for line in (ws.dot / "operations.jsonl").read_text().splitlines()]
    (ws.dot / "operations.jsonl").write_text(
        "".join(json.dumps({key: value for key, value in each.items() if key != "by"}) + "\n" for each in said)
    )
    (ws.dot / "audit.jsonl").unlink()
    (ws.dot / "audit.head").unlink()
    assert llmos("audit", "--verify").code == llmos("fsck").code == 0
    commit(a="3")
    assert llmos("audit", "--verify").code == llmos("fsck").code == 0


def test_repairing_moves_nothing_where_the_log_that_would_know_is_gone(
    ws: Workspace, commit, llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    assert llmos("branch", "dev").code == llmos("checkout", "dev").code == 0
    take_away_logs(ws)
    assert llmos("fsck", "--repair").code == 5
    assert ws.head().name == "dev"
