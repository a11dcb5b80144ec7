"""Refs of remotes that were edited or taken away behind llmos's back: seen, told as what they are, and put back; nothing goes for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmos_cli.core import heard
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.fsck_remote import fsck_remote
from llmos_cli.operations.push import push
from llmos_cli.operations.redo import redo
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import commit_to

V1, SIDE, MAIN = (f"refs/remotes/origin/{each}" for each in ("tags/v1", "heads/side", "heads/main"))


@pytest.fixture
def sent(ws: Workspace, commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """`origin/side` alone names a checkpoint."""
    monkeypatch.chdir(ws.root)
    commit(a="1")
    tag(ws, "v1")
    commit(a="2", move=False)
    (other,) = set(ws.index.parents()) - {ws.resolve()}
    branch(ws, "side", other)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws, everything=True)
    delete_branch(ws, "side")
    return ws


def without_note(ws: Workspace) -> None:
    """As of before there were any."""
    shutil.rmtree(ws.dot / "remotes")


def flip(ws: Workspace, ref: str) -> str:
    """One digit, of those that nobody is shown."""
    value = str(ws.refs.read(ref))
    wrong = value[:32] + ("a" if value[32] == "b" else "b") + value[33:]
    (ws.dot / ref).write_text(f"{wrong}\n")
    return wrong


def refs(ws: Workspace) -> dict[str, str]:
    return ws.refs.under("refs/remotes/")


@pytest.mark.parametrize("noted", [True, False])
def test_a_flipped_digit_is_a_ref_gone_wrong_and_no_lost_checkpoint(sent: Workspace, llmos, noted: bool) -> None:
    before = refs(sent)
    if not noted:
        without_note(sent)
    wrong = flip(sent, V1)
    (problem,) = fsck(sent).problems
    assert problem.where == V1 and wrong[:33] in problem.what and ("last heard" in problem.what) == noted
    for words in (("gc", "--dry-run"), ("backup",)):
        said = llmos(*words)
        assert (said.code, V1 in said.err, "--repair" in said.err, "accept-loss" in said.err) == (5, True, True, False)
    for rev, code in ((wrong[:12], 2), (wrong[:33], 4), (wrong, 4)):
        assert llmos("fsck", "--accept-loss", rev).code == code, rev
    assert "nothing here ever told of" in llmos("fsck", "--accept-loss", "origin/v1").err
    assert not (sent.dot / "lost").exists()
    assert llmos("fsck", "--repair").code == llmos("fsck").code == llmos("gc", "--dry-run").code == 0
    assert refs(sent) == before


def test_where_the_remote_is_silent_too_it_is_said_what_ends_it(sent: Workspace, tmp_path: Path, llmos) -> None:
    without_note(sent)
    flip(sent, V1)
    (tmp_path / "far").rename(tmp_path / "away")
    said = llmos("fsck", "--repair")
    assert (said.code, "accept-loss" in said.err) == (5, False)
    assert "`llmos fetch origin` asks origin" in said.out and "`llmos remote rm origin`" in said.out
    assert llmos("remote", "rm", "origin").code == llmos("fsck").code == 0


def test_fetch_heals_it(sent: Workspace, llmos) -> None:
    before = refs(sent)
    flip(sent, V1)
    assert llmos("fetch").code == llmos("fsck").code == 0
    assert refs(sent) == before


@pytest.mark.parametrize("how", ["one", "all", "edited", "added"])
def test_what_only_a_remote_names_does_not_go_because_its_ref_did(sent: Workspace, llmos, how: str) -> None:
    before, only = refs(sent), str(sent.refs.read(SIDE))
    if how == "one":
        (sent.dot / SIDE).unlink()
    elif how == "all":
        shutil.rmtree(sent.dot / "refs/remotes")
    elif how == "edited":
        (sent.dot / SIDE).write_text(f"{sent.resolve()}\n")
    else:
        (sent.dot / "refs/remotes/origin/heads/more").write_text(f"{only}\n")
    now = ("gc", "--expire", "now", "--window", "now")
    said = llmos(*now)
    assert (said.code, "nothing was removed" in said.err) == (5, True)
    assert llmos("fsck").code == 5
    assert llmos("fsck", "--repair").code == llmos("fsck").code == 0
    assert refs(sent) == before and only not in llmos(*now, "--dry-run").out


def test_a_lost_checkpoint_that_only_a_remote_names_can_be_given_up(sent: Workspace, llmos, tmp_path: Path) -> None:
    """Its ref says what was heard."""
    only = str(sent.refs.read(SIDE))
    shutil.rmtree(sent.checkpoints / only)
    shutil.rmtree(tmp_path / "far")
    said = llmos("fsck", "--repair")
    assert (said.code, f"--accept-loss {only[:12]}" in said.err) == (5, True)


def test_what_was_noted_follows_every_way_in_which_they_move(sent: Workspace, llmos, tmp_path: Path) -> None:
    push_again = ("push", "--all")
    for words in (
        ("push", "--delete", "side"),
        ("tag", "v2"),
        push_again,
        ("remote", "rm", "origin"),
        ("undo",),
        ("redo",),
        ("remote", "add", "origin", tmp_path / "other"),
        push_again,
        ("fetch",),
        ("backup",),
    ):
        assert llmos(*words).code == 0, words
        assert llmos("fsck").code == 0, words
    assert heard.read(sent, "origin") == {"heads/main": (sent.resolve(),)} | {
        f"tags/{each}": (sent.resolve(),) for each in ("v1", "v2")
    }


def test_a_kill_between_the_note_and_the_refs_is_no_damage(sent: Workspace) -> None:
    before, after = str(sent.refs.read(MAIN)), str(sent.refs.read(SIDE))
    with pytest.raises(KeyboardInterrupt), heard.moving(sent, "origin", {"heads/main": after, "heads/side": None}):
        assert fsck(sent).problems == ()
        sent.refs.write(MAIN, after)
        assert fsck(sent).problems == ()
        raise KeyboardInterrupt
    assert fsck(sent).problems == ()
    assert heard.read(sent, "origin")["heads/main"] == (before, after)
    fetch(sent)
    assert fsck(sent).problems == () and heard.read(sent, "origin")["heads/main"] == (before,)


@pytest.mark.parametrize("damage", [b"", b"\xff", b"{}\n", b'{"refs": {"heads/main": 3}}'])
def test_a_damaged_note_is_written_anew_from_the_refs(sent: Workspace, llmos, damage: bytes) -> None:
    path = sent.root / heard.file_of("origin")
    good = path.read_bytes()
    path.write_bytes(damage)
    found = llmos("fsck")
    assert (found.code, ".llmos/remotes/origin.json" in found.out) == (5, True)
    assert llmos("fsck", "--repair").code == llmos("fsck").code == 0
    assert path.read_bytes() == good
    path.write_bytes(damage)
    assert llmos("remote", "rm", "origin").code == 5
    assert llmos("fetch").code == llmos("fsck").code == 0 and path.read_bytes() == good


def test_a_workspace_of_before_there_were_notes_has_one_from_the_next_fetch_on(sent: Workspace) -> None:
    without_note(sent)
    assert fsck(sent).problems == ()
    fetch(sent)
    assert set(heard.read(sent, "origin")) == {"heads/main", "heads/side", "tags/v1"}
    undo(sent)  # the branch comes back
    commit_to(sent, {"a": "3"})
    assert fsck(sent).problems == ()


def test_a_remote_whose_adding_was_undone_is_forgotten(sent: Workspace, tmp_path: Path) -> None:
    """Another one of that name is not asked for what the first had."""
    known = refs(sent)
    assert undo(sent).operation.name == "undo branch -d side" and undo(sent).operation.name == "undo remote add origin"
    assert refs(sent) == {} and heard.noted(sent) == []
    redo(sent)
    assert refs(sent) == known and heard.noted(sent) == ["origin"] and not fsck(sent).problems
    undo(sent)
    remotes.add(sent, "origin", str(tmp_path / "new"))
    push(sent, ["v1"])
    assert fsck_remote(sent, "origin").problems == ()


def test_a_remote_that_was_removed_and_added_again_is_undone_step_by_step(sent: Workspace, tmp_path: Path) -> None:
    known = refs(sent)
    remotes.remove(sent, "origin")
    remotes.add(sent, "origin", str(tmp_path / "far"))
    fetch(sent)
    undo(sent), undo(sent)
    assert refs(sent) == known and remotes.settings(sent)["origin"].url and not fsck(sent).problems
