"""What is lost for good is given up by name: then all that is still here can be kept, collected, moved and read again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmos_cli.core.lost import Loss
from llmos_cli.core.operation import Change
from llmos_cli.core.remote import receiving, sending
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.data.rows import Rows
from llmos_cli.data.snapshots import kept
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit, verify
from llmos_cli.operations.backup import backup
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.integrity.result import FsckResult
from llmos_cli.operations.log import log
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore
from llmos_cli.operations.seal import seal
from llmos_cli.operations.show import show
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.transports.local import open_store
from tests.core.test_lost import DAMAGES, anew, flipped, taken


def bitten(checkpoint: Checkpoint) -> None:
    """A file of it has other bytes, wherever it is."""
    (checkpoint.path / "a").chmod(0o644)
    (checkpoint.path / "a").write_text("?")


def give_up(ws: Workspace, *checkpoints: Checkpoint) -> FsckResult:
    return fsck(anew(ws), accept_loss=[each.id[:12] for each in checkpoints])


def line(ws: Workspace) -> list[str]:
    return [each.id for each in log(anew(ws)).checkpoints]


@pytest.fixture
def three(ws: Workspace, commit) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    return commit(a="1"), commit(a="2"), commit(a="3")


@pytest.mark.parametrize("what", DAMAGES)
def test_what_is_given_up_is_in_nobodys_way(ws, three, commit, tmp_path, what):
    first, second, third = three
    stray = commit(a="4", move=False)
    DAMAGES[what](second)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    assert fsck(anew(ws)).problems
    found = give_up(ws, second)
    assert found.problems == () and [(each.checkpoint, each.what) for each in found.given_up] == [
        (second.id, "checkpoint")
    ]
    assert not fsck(anew(ws)).index_differed
    with pytest.raises(NotFound, match="was given up"):
        show(anew(ws), second.id)
    assert [each.name for each in gc(ws, expire="now", window="now").garbage if each.kind == "checkpoint"] == [stray.id]
    assert line(ws) == [third.id, second.id, first.id] and third.path.is_dir() and first.path.is_dir()
    backup(anew(ws))
    push(anew(ws))
    restore(str(tmp_path / "far"), tmp_path / "back")
    clone(str(tmp_path / "far"), tmp_path / "copy")
    for name in ("back", "copy"):
        there = Workspace.find(tmp_path / name)
        assert line(there) == line(ws) and there.checkpoint(first.id) and there.resolve("HEAD~2") == first.id
        assert gc(there, expire="now", window="now").garbage == ()
        checked = fsck(there)
        assert checked.problems == () and [each.checkpoint for each in checked.given_up] == [second.id]
    assert push(anew(ws)).refs == () and fetch(Workspace.find(tmp_path / "copy")).parts() == []


def test_data_travel_past_a_hole(ws, three, tmp_path):
    ws.snapshots.write(rows := kept({"train": Rows({"text": ["a"]})}, source="", asked="", store=ws.snapshots.store))
    taken(three[1])
    give_up(ws, three[1])
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(anew(ws), data=True)
    clone(str(tmp_path / "far"), tmp_path / "copy", data=True)
    other = Workspace.find(tmp_path / "copy")
    other.snapshots.write(rows)
    assert fetch(other, data=True).snapshots == 0 and push(other, data=True).snapshots == 0


def test_it_is_said_plainly_in_one_operation_that_undo_takes_back(ws, three, llmos, monkeypatch):
    _, second, _ = three
    taken(second)
    monkeypatch.chdir(ws.root)
    ran = llmos("fsck", "--accept-loss", second.id[:12])
    assert ran.code == 0 and f"checkpoint {second.id[:12]} was given up: it is lost for good" in ran.out
    assert llmos("fsck").code == 0
    assert f"{second.id[:12]}  given up: it is lost for good" in llmos("log").out
    for words in (["show", second.id[:8]], ["tag", "x", "HEAD~1"], ["reproduce"]):
        told = llmos(*words)
        assert told.code == 4 and "was given up: it is lost for good" in told.err
    assert json.loads(llmos("fsck", "--json").out)["given_up"] == [{"checkpoint": second.id, "what": "checkpoint"}]
    assert llmos("log", "--graph").code == llmos("log", "--all").code == llmos("du").code == llmos("status").code == 0
    assert audit(ws).records[0].what == f"fsck --accept-loss {second.id[:12]}" and verify(ws).records
    assert f"loss of {second.id[:12]} not accepted any more" in llmos("undo").out
    assert llmos("fsck").code == 5 and llmos("gc").code == 5
    assert llmos("redo").code == 0 and llmos("fsck").code == 0


def test_weights_that_are_lost_count_as_removed(ws, three, tmp_path):
    first, second, third = three
    bitten(second)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    with pytest.raises(Corrupt):
        backup(ws)
    found = give_up(ws, second)
    assert found.problems == () and found.given_up[0].what == "weights"
    assert show(ws, second.id).checkpoint.lost and "are lost" in str(show(ws, second.id).view())
    backup(ws)
    push(ws)
    restore(str(tmp_path / "far"), tmp_path / "back")
    clone(str(tmp_path / "far"), tmp_path / "copy")
    assert all(fsck(Workspace.find(tmp_path / name)).problems == () for name in ("back", "copy"))
    undo(ws)
    assert [problem.file for problem in fsck(anew(ws)).problems] == ["a"]
    give_up(ws, second)
    gc(ws, window="now")
    assert not (second.path / "a").exists() and fsck(anew(ws)).problems == ()
    assert line(ws) == [third.id, second.id, first.id]


def test_encrypted_files_that_are_lost_count_as_removed(ws, three, tmp_path):
    seal(ws, three[1].id, ask=lambda _: "5" * 64)
    path = ws.sealed.path(next(iter(ws.sealed.seal(three[1].id).tree.values())).sha256)
    path.unlink()
    assert fsck(anew(ws)).problems and give_up(ws, three[1]).problems == ()


def test_what_is_whole_is_not_given_up(ws, three, llmos, monkeypatch):
    first, second, third = three
    taken(second)
    monkeypatch.chdir(ws.root)
    before = sorted(ws.dot.rglob("*"))
    for revs in (["HEAD"], ["main"], [first.id], [second.id, third.id]):
        told = llmos("fsck", *(word for rev in revs for word in ("--accept-loss", rev)))
        assert told.code == 2 and "is whole: there is nothing to give up" in told.err
    assert llmos("fsck", "--accept-loss", "ffff").code == 4
    assert sorted(path for path in ws.dot.rglob("*") if "index" not in path.name) == [
        path for path in before if "index" not in path.name
    ]
    give_up(ws, second)
    with pytest.raises(UsageError, match="already"):
        give_up(ws, second)


@pytest.mark.parametrize("what", [*DAMAGES, "is bitten"])
def test_what_a_remote_has_is_no_loss(ws, three, tmp_path, what):
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    {**DAMAGES, "is bitten": bitten}[what](three[1])
    found = give_up(ws, three[1])
    assert found.problems == found.given_up == () and found.repaired and ws.checkpoint(three[1].id)


@pytest.mark.parametrize("bring", [fetch, pull])
@pytest.mark.parametrize("what", [*DAMAGES, "is bitten"])
def test_a_copy_that_turns_up_counts_again(ws, three, tmp_path, what, bring):
    copy = shutil.copytree(ws.root, tmp_path / "copy")
    other = Workspace.find(copy)
    {**DAMAGES, "is bitten": bitten}[what](three[1])
    give_up(ws, three[1])
    remotes.add(other, "origin", str(tmp_path / "far"))
    push(other)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    bring(ws)
    assert ws.lost.all() == {} and ws.checkpoint(three[1].id) and show(ws, three[1].id)
    assert fsck(anew(ws)).problems == fsck(anew(ws)).given_up == ()


def test_what_is_put_back_by_hand_counts_again(ws, three):
    back = taken(three[1])
    give_up(ws, three[1])
    back()
    assert show(ws, three[1].id) and fsck(anew(ws)).given_up == () and ws.lost.all() == {}
    taken(three[1])
    assert fsck(anew(ws)).problems


@pytest.mark.parametrize("what", DAMAGES)
def test_where_nobody_knows_what_it_came_from_all_that_may_have_been_stays(ws, three, commit, what):
    first, second, third = three
    stray = commit(a="4", move=False, scratch=True)
    for record in ws.runs.list():
        shutil.rmtree(record.path)
        ws.refs.write(f"refs/runs/{record.id}", None)
    DAMAGES[what](second)
    give_up(ws, second)
    kept = [each.name for each in gc(anew(ws), expire="now", window="now").garbage if each.kind == "checkpoint"]
    assert kept == [] and all(each.path.is_dir() for each in (first, third, stray))
    assert "what it came from is not known" in str(log(ws).view())


def test_a_branch_whose_last_checkpoint_is_given_up_still_moves(ws, three, commit, tmp_path, llmos, monkeypatch):
    first, second, third = three
    taken(third)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    assert give_up(ws, third).problems == () and line(ws) == [third.id, second.id, first.id]
    push(anew(ws), everything=True)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    there = Workspace.find(tmp_path / "copy")
    assert fsck(there).problems == () and line(there) == line(ws)
    with pytest.raises(NotFound, match="given up"):
        there.checkpoint()
    monkeypatch.chdir(ws.root)
    assert llmos("branch", "-f", "main", second.id).code == 0 and llmos("gc", "--keep-last", "1").code == 0


def test_what_is_left_of_it_goes_with_the_window(ws, three):
    flipped(three[1])
    give_up(ws, three[1])
    assert not [each for each in gc(ws).garbage if each.kind == "lost"]
    assert [each.kind for each in gc(anew(ws), window="now").garbage] == ["lost"] and not three[1].path.exists()
    assert fsck(anew(ws)).problems == () and len(line(ws)) == 3


def test_a_mark_that_was_edited_is_found(ws, three):
    taken(three[1])
    give_up(ws, three[1])
    path = ws.lost.directory / three[1].id
    for at in range(len(text := path.read_bytes())):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        assert [each.name for each in ws.lost.strange()] == [three[1].id]
    assert f".llmos/lost/{three[1].id}" in [problem.where for problem in fsck(anew(ws)).problems]


def test_what_is_beyond_a_hole_goes_first(ws, commit, tmp_path):
    """Or what was cut off would be taken for whole, and never go on."""
    line = [commit(a=str(number)) for number in range(8)]
    for each in line[1:8:2][:3]:
        shutil.rmtree(each.path)
    give_up(ws, *line[1:8:2][:3])
    left = [line[0].id, line[2].id, line[4].id, line[6].id, line[7].id]
    far = Remote("far", str(tmp_path / "far"), open_store(str(tmp_path / "far"), tmp_path, "nobody"))
    assert [each.id for each in sending.lacking(ws, far, [line[7].id]).whole] == left
    assert [each.id for each in sending.everything(ws, far, left, {}).whole] == left
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    far = Remote("far", str(tmp_path / "far"), open_store(str(tmp_path / "far"), tmp_path, "nobody"))
    coming = receiving.lacking(Workspace.create(tmp_path / "new"), far, [line[7].id])
    assert [each.id for each in coming.checkpoints] == left and len(coming.runs) == len(line)


def test_what_nobody_names_below_a_hole_is_none_of_its_ancestors(ws, three, commit):
    ws.oplog.apply("branch", [Change("refs/heads/main", three[2].id, three[0].id)])
    for record in ws.runs.list():
        shutil.rmtree(record.path)
        ws.refs.write(f"refs/runs/{record.id}", None)
    taken(three[1])
    tag(ws, "x", three[2].id)
    ws.refs.write("refs/tags/x", None)
    give_up(ws, three[1])
    assert ws.lost.all()[three[1].id].parents == ()


def test_a_line_on_a_remote_that_bites_its_tail_is_refused(ws, three, tmp_path):
    taken(three[1])
    give_up(ws, three[1])
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    (tmp_path / "far" / "lost" / f"{three[1].id}.json").write_text(Loss(three[1].id, (three[2].id,)).text())
    with pytest.raises(Corrupt, match="comes from itself"):
        clone(str(tmp_path / "far"), tmp_path / "copy")


def test_a_remote_gives_up_nothing_that_is_here(ws, three, tmp_path):
    """Whoever can write there may say so."""
    tag(ws, "base", three[0].id)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy")
    taken(three[1])
    give_up_here = Workspace(ws.root)
    (Path(tmp_path / "far") / "checkpoints" / f"{three[1].id}.json").unlink()
    give_up(give_up_here, three[1])
    push(anew(ws), force=True)
    there = Workspace.find(tmp_path / "copy")
    fetch(there)
    assert there.lost.all() == {} and there.checkpoint(three[1].id)
    (Path(tmp_path / "far") / "lost" / f"{three[1].id}.json").write_text("{}")
    with pytest.raises(Corrupt, match="makes no sense"):
        clone(str(tmp_path / "far"), tmp_path / "another")


def test_what_a_remote_may_have_is_not_given_up_unasked(ws, three, tmp_path, llmos, monkeypatch):
    """A disk that is not mounted is an empty folder: nobody says that it has nothing."""
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    (tmp_path / "far").rename(tmp_path / "unmounted")
    bitten(three[1])
    monkeypatch.chdir(ws.root)
    asked = llmos("fsck", "--repair")
    assert asked.code == 5 and "origin was not asked: nothing is at" in asked.err
    refused = llmos("fsck", "--accept-loss", three[1].id[:12])
    assert refused.code == 6 and "origin could not be asked" in refused.err and "remote rm origin" in refused.err
    assert not anew(ws).lost.all()
    for words in (["push", "--all"], ["backup"]):
        begun = llmos(*words)
        assert begun.code == 4 and "is its disk mounted?" in begun.err and not (tmp_path / "far").exists()
    (tmp_path / "unmounted").rename(tmp_path / "far")
    assert "repaired" in llmos("fsck", "--repair").out
    bitten(three[1])
    (tmp_path / "far").rename(tmp_path / "gone")
    assert llmos("remote", "rm", "origin").code == 0
    assert llmos("fsck", "--accept-loss", three[1].id[:12]).code == 0
