"""Small files of `.llmos` that were damaged: each is told in one sentence, found by `fsck` where it matters, and made anew."""

from __future__ import annotations

import shutil

import pytest

from llmos_cli.core.workspace import Workspace


@pytest.mark.parametrize("damage", [b"hardmink\n", b"", b"\xff\xfe"])
def test_what_is_no_way_to_share_is_told_found_and_found_out_anew(used: Workspace, llmos, damage: bytes) -> None:
    path = used.dot / "storage"
    good = path.read_bytes()
    path.write_bytes(damage)
    for words in (("status",), ("du",), ("rm", "HEAD", "--force")):
        said = llmos(*words)
        assert (said.code, "storage holds" in said.err, "fsck --repair" in said.err) == (5, True, True), words
    found = llmos("fsck")
    assert (found.code, ".llmos/storage" in found.out) == (5, True)
    mended = llmos("fsck", "--repair")
    assert (mended.code, "repaired .llmos/storage from what this disk can do" in mended.out) == (0, True)
    assert path.read_bytes() == good
    assert llmos("status").code == llmos("fsck").code == 0


def test_the_next_commit_says_how_files_share_whatever_stood_there(ws: Workspace, commit) -> None:
    commit(a="1")
    good = (ws.dot / "storage").read_bytes()
    (ws.dot / "storage").write_bytes(b"\xff")
    commit(a="2")
    assert (ws.dot / "storage").read_bytes() == good


@pytest.mark.parametrize("damage", [b"x", b"bard\n", b"\xff"])
def test_a_mark_of_removed_weights_has_no_other_bytes(used: Workspace, llmos, damage: bytes) -> None:
    (removed,) = used.dropped.all()
    never_came = used.resolve()
    files = [path for path in (used.checkpoints / never_came).iterdir() if path.name != "manifest.json"]
    for path in files:
        path.unlink()
    used.dropped.mark_bare(never_came)
    marks = {each: (path := used.dot / "dropped" / each, path.read_bytes()) for each in (removed, never_came)}
    assert [said for _, said in marks.values()] == [b"", b"bare\n"]
    for path, _ in marks.values():
        path.write_bytes(damage)
    found = llmos("fsck")
    assert (found.code, [f".llmos/dropped/{each}" in found.out for each in marks]) == (5, [True, True])
    assert llmos("undo", next(each.id for each in used.oplog.operations() if each.name.startswith("rm "))).code == 6
    assert llmos("fsck", "--repair").code == llmos("fsck").code == 0
    assert [path.read_bytes() for path, _ in marks.values()] == [said for _, said in marks.values()]


def test_a_mark_that_nobody_made_is_taken_away_whatever_it_says(used: Workspace, llmos) -> None:
    (mark := used.dot / "dropped" / used.resolve()).write_bytes(b"\xff")
    assert llmos("fsck", "--repair").code == 0
    assert not mark.exists()


def test_an_identity_of_whatever_bytes_names_uploads(used: Workspace, llmos) -> None:
    """It is random, and nobody reads a meaning out of it."""
    (used.dot / "identity").write_bytes(b"\xff\xfe")
    assert llmos("push", "--all").code == llmos("fsck").code == 0


@pytest.mark.parametrize("damage", [b"", b"\xff", b"{}", None])
def test_a_mark_of_loss_comes_back_from_the_log(
    ws: Workspace, commit, llmos, monkeypatch, damage: bytes | None
) -> None:
    monkeypatch.chdir(ws.root)
    first = commit(a="1")
    commit(a="2")
    shutil.rmtree(first.path)
    assert llmos("fsck", "--accept-loss", first.id).code == 0
    mark = ws.dot / "lost" / first.id
    good = mark.read_bytes()
    mark.unlink() if damage is None else mark.write_bytes(damage)
    found = llmos("fsck")
    assert (found.code, f".llmos/lost/{first.id}" in found.out, "move it away" in found.out) == (5, True, False)
    assert llmos("fsck", "--repair").code == llmos("fsck").code == 0
    assert mark.read_bytes() == good
    assert llmos("undo").code == 0 and not mark.exists()
    assert "lost" not in llmos("fsck", "--repair").out and not mark.exists()
