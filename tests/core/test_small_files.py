"""Small files of `.llmos` that were damaged: each is told in one sentence, found by `fsck` where it matters, and made anew."""

from __future__ import annotations

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
