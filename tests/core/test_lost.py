"""Something is damaged or gone: nothing that is healthy goes with it, what it is is said, and there is a way back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Metric
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.log import log
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore


def taken(checkpoint: Checkpoint) -> Callable[[], object]:
    """Its folder is gone; what is returned brings it back."""
    aside = checkpoint.path.parents[1] / "aside"
    checkpoint.path.rename(aside)
    return lambda: aside.rename(checkpoint.path)


def flipped(checkpoint: Checkpoint) -> Callable[[], object]:
    """Its manifest is none any more."""
    path = checkpoint.path / "manifest.json"
    good = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"\xfa" + good[1:])
    return lambda: path.write_bytes(good)


DAMAGES = {"is missing": taken, "has a manifest that cannot be read": flipped}


def anew(ws: Workspace) -> Workspace:
    """As the next command finds it, with an index that is made from the files as they are now."""
    (ws.dot / "index.sqlite").unlink(missing_ok=True)
    return Workspace(ws.root)


@pytest.mark.parametrize("what", DAMAGES)
def test_gc_removes_nothing_while_a_line_is_broken(ws, commit, what):
    first, second, third = commit(a="1"), commit(a="2"), commit(a="3")
    stray = commit(a="4", move=False)
    mend = DAMAGES[what](second)
    for _ in range(2):
        with pytest.raises(Corrupt, match=f"^checkpoint {second.id[:12]} {what}") as told:
            gc(ws := anew(ws), expire="now", window="now")
        assert "fsck --repair" in told.value.hint
    assert first.path.is_dir() and third.path.is_dir() and stray.path.is_dir()
    mend()
    assert [each.id for each in log(ws).checkpoints] == [third.id, second.id, first.id]
    assert [each.name for each in gc(ws, expire="now", window="now").garbage if each.kind == "checkpoint"] == [stray.id]
    assert fsck(ws).problems == ()


def test_gc_removes_nothing_below_a_manifest_that_cannot_be_read_though_nothing_names_it(ws, commit):
    commit(a="1")
    commit(a="2", move=False)
    mend = flipped(commit(a="3", move=False))
    with pytest.raises(Corrupt, match="cannot be read"):
        gc(anew(ws), expire="now", window="now")
    mend()
    assert gc(anew(ws), expire="now", window="now").garbage


def test_gc_goes_on_without_what_it_removed_itself(ws, commit):
    """The log of operations names it for 30 days; that it is gone is no damage."""
    commit(a="1")
    gone = commit(a="2", move=False)
    branch(ws, "try", gone.id)
    delete_branch(ws, "try")
    assert gone.id in [each.name for each in gc(ws, expire="now", window="now").garbage]
    assert gc(anew(ws)).garbage == ()


def test_what_was_collected_and_came_again_stays_for_undo(ws, commit):
    commit(a="1")
    gone = commit(a="2", move=False)
    copy = Path(shutil.copytree(gone.path, ws.root / "copy"))
    gc(ws, expire="now", window="now")
    assert not gone.path.exists()
    copy.rename(gone.path)
    branch(ws, "try", gone.id)
    delete_branch(ws, "try")
    assert gc(ws, expire="now").garbage == () and gone.path.is_dir()


@pytest.mark.parametrize("what", DAMAGES)
def test_no_backup_is_made_that_could_not_be_restored(ws, commit, tmp_path, what):
    first, second, third = commit(a="1"), commit(a="2"), commit(a="3")
    mend = DAMAGES[what](second)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    for _ in range(2):
        with pytest.raises(Corrupt, match=f"^checkpoint {second.id[:12]} {what}"):
            backup(anew(ws))
    mend()
    backup(anew(ws))
    DAMAGES[what](second)
    commit(a="4")
    backup(anew(ws))  # the remote has what is missing here
    restore(str(tmp_path / "far"), tmp_path / "back")
    back = Workspace.find(tmp_path / "back")
    assert [each.id for each in log(back).checkpoints][1:] == [third.id, second.id, first.id]
    assert fsck(back).problems == ()


@pytest.mark.parametrize("ref", ["HEAD", "refs/tags/base", "refs/stages/small", "refs/runs/x"])
def test_no_backup_is_made_of_a_ref_that_names_nothing(ws, commit, tmp_path, ref):
    commit(a="1")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    backup(ws)
    ws.refs.write(ref, "f" * 64)
    with pytest.raises(Corrupt, match=r"^checkpoint ffffffffffff is missing"):
        backup(ws)


def test_a_push_sends_what_the_remote_lost_below_its_newest(ws, commit, tmp_path):
    """As it did when a backup was taken of a workspace that lacked a checkpoint itself."""
    commit(a="1")
    second = commit(a="2")
    commit(a="3")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    (tmp_path / "far" / "checkpoints" / f"{second.id}.json").unlink()
    assert push(ws).checkpoints == 1
    clone(str(tmp_path / "far"), tmp_path / "copy")


def test_a_run_that_is_gone_is_told_and_its_ref_goes(ws, commit):
    commit(a="1")
    run = ws.runs.list()[0]
    shutil.rmtree(run.path)
    assert [problem.where for problem in fsck(anew(ws)).problems] == [f"refs/runs/{run.id}"]
    assert fsck(anew(ws), repair=True).problems == ()
    assert list(ws.refs.names("refs/runs/")) == []


def test_an_evaluation_that_is_gone_is_told_and_comes_back_or_is_forgotten(ws, commit, tmp_path, llmos, monkeypatch):
    """No ref tells of it, but the ledger does."""
    checkpoint = commit(a="1")
    measured = []
    for value in (1.5, 2.5):
        with ws.begin("eval", config={}, parents=(checkpoint.id,)) as run:
            run.emit(Metric("loss", value, "test", checkpoint=checkpoint.id))
        measured.append(run.path)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    shutil.rmtree(measured[0])
    assert [(each.where, each.what) for each in fsck(anew(ws)).problems] == [
        (f"runs/{measured[0].name}", "is missing, and the ledger says how it ended")
    ]
    assert fsck(anew(ws), repair=True).problems == () and (measured[0] / "events.jsonl").is_file()
    shutil.rmtree(tmp_path / "far"), shutil.rmtree(measured[0])
    monkeypatch.chdir(ws.root)
    assert llmos("fsck", "--repair").code == 5, "it was sent something, and cannot be asked now"
    remotes.remove(ws, "origin")
    assert fsck(anew(ws), repair=True).problems == ()
    assert list(ws.ledger.all()) == [ws.runs.list()[0].id, measured[1].name] and not ws.ledger.damaged()


@pytest.mark.parametrize("what", DAMAGES)
def test_log_says_where_a_line_breaks_off(ws, commit, llmos, monkeypatch, what):
    commit(a="1"), commit(a="2")
    second = commit(a="3", scratch=True)
    third = commit(a="4")
    DAMAGES[what](second)
    monkeypatch.chdir(ws.root)
    anew(ws)
    told = llmos("log")
    assert f"{second.id[:12]}  its checkpoint is missing or cannot be read: `llmos fsck`" in told.out
    assert third.id[:12] in told.out and "unrelated" not in told.out


def test_nothing_is_named_after_a_checkpoint_that_is_missing(ws, commit, llmos, monkeypatch):
    taken(commit(a="1"))
    commit(a="2")
    monkeypatch.chdir(ws.root)
    before = set(ws.refs.names("refs/"))
    for words in (
        ["tag", "x", "HEAD~1"],
        ["branch", "old", "HEAD~1"],
        ["checkout", "HEAD~1"],
        ["checkout", "-b", "y", "@^"],
    ):
        ran = llmos(*words)
        assert ran.code == 5 and "is missing" in ran.err
    assert set(ws.refs.names("refs/")) == before and ws.head().branch == "main"
