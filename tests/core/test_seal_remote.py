"""Sealed checkpoints travel as they are: encrypted, to remotes, clones and backups, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmos_cli.core.remote import layout
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, Untrusted
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.operations.unseal import unseal
from tests.conftest import Llmos
from tests.core.conftest import Commit, commit_to
from tests.core.test_seal import KEY, content, in_the_clear, nobody, typed

pytest.importorskip("cryptography", reason="needs the tool cryptography")


@pytest.fixture
def far(tmp_path: Path, ws: Workspace) -> Path:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    return tmp_path / "far"


@pytest.fixture
def secret(ws: Workspace, commit: Commit, far: Path) -> str:
    """In the middle of a line."""
    commit(a="first")
    made = commit(a="secret", b="and more").id
    tag(ws, "secret")
    commit(a="third")
    return made


def test_there_and_elsewhere(ws: Workspace, far: Path, secret: str) -> None:
    open_ = content(ws, secret)
    seal(ws, "secret", ask=typed)
    sent = push(ws)
    assert (sent.checkpoints, sent.sealed, sent.lineage) == (2, 1, 0)
    assert "2 checkpoints and 1 sealed checkpoint (" in sent.parts()[0]
    assert push(ws).parts() == []
    assert not [path for path in far.rglob("*") if path.is_file() and path.read_bytes() == b"secret"]
    got = clone(str(far), far.parent / "copy").fetched
    assert (got.checkpoints, got.sealed, got.lineage) == (2, 1, 0)
    other = Workspace.find(far.parent / "copy")
    assert secret in other.sealed and in_the_clear(other, secret) == [] and fsck(other).problems == ()
    with pytest.raises(Untrusted, match="is sealed"):
        other.checkpoint("secret")
    unseal(other, "secret", ask=typed)
    assert content(other, secret) == open_ and fsck(other).problems == ()
    # Who opens it and pushes sends it open, as every push does; who has it sealed keeps it so.
    assert push(other).checkpoints == 1 and fetch(ws).parts() == [] and secret in ws.sealed


def test_what_is_fetched_again_and_what_was_open_there(ws: Workspace, far: Path, secret: str, tmp_path: Path) -> None:
    seal(ws, "secret", ask=typed)
    push(ws)
    rm(ws, ["secret"], force=True)
    gc(ws, window="now")
    assert secret not in ws.sealed and list(ws.sealed.names()) == []
    assert fetch(ws, weights=["secret"]).sealed == 1
    assert ws.closed(secret) == "sealed" and fsck(ws).problems == ()
    rm(ws, ["secret"], force=True)
    assert fetch(ws, weights=["secret"]).sealed == 1, "removed, and the files still there"
    unseal(ws, "secret", ask=typed)
    push(ws)
    clone(str(far), tmp_path / "copy")
    other = Workspace.find(tmp_path / "copy")
    assert other.checkpoint("secret").id == secret and other.sealed.all() == set()


def test_a_pull_moves_on_to_what_is_sealed(ws: Workspace, far: Path, commit: Commit, tmp_path: Path) -> None:
    commit(a="first")
    push(ws)
    clone(str(far), tmp_path / "copy")
    made = commit(a="secret")
    seal(ws, ask=typed)
    push(ws)
    other = Workspace.find(tmp_path / "copy")
    assert pull(other).checkpoint == made.id and made.id in other.sealed


def test_a_backup_keeps_it_sealed(ws: Workspace, far: Path, secret: str, tmp_path: Path) -> None:
    open_ = content(ws, secret)
    seal(ws, "secret", ask=typed)
    backup(ws)
    assert backup(ws).sent < 12, "the encrypted files are there already"
    restore(str(far), tmp_path / "again")
    other = Workspace.find(tmp_path / "again")
    assert other.sealed.all() == {secret} and other.dropped.all() == set() and in_the_clear(other, secret) == []
    assert (other.sealed.directory / f"{secret}.json").read_bytes() == (
        ws.sealed.directory / f"{secret}.json"
    ).read_bytes()
    assert fsck(other).problems == ()
    unseal(other, "secret", ask=typed)
    assert content(other, secret) == open_


def test_damaged_encrypted_files_come_back_from_a_remote(ws: Workspace, far: Path, secret: str) -> None:
    seal(ws, "secret", ask=typed)
    push(ws)
    for sha256, entry in list(ws.sealed.names()):
        Path(entry.path).chmod(0o644)
        Path(entry.path).write_bytes(b"damaged " + sha256.encode())
    assert len(fsck(ws).problems) == 2
    repaired = fsck(ws, repair=True)
    assert repaired.problems == () and {each.source for each in repaired.repaired} == {"origin"}
    unseal(ws, "secret", ask=typed)


def bitten(ws: Workspace, sha256: str) -> None:
    path = ws.sealed.path(sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(KEY)
    return tmp_path / "key"


@pytest.fixture
def open_there(ws: Workspace, far: Path, secret: str) -> str:
    """It was pushed before it was sealed, and two others, one of which shares a file with it."""
    commit_to(ws, {"a": "secret", "c": "of its own"})
    push(ws)
    seal(ws, "secret", with_lineage=True, ask=typed)
    return secret


def test_what_a_remote_has_in_the_clear_is_sealed_anew(
    ws: Workspace, open_there: str, key_file: Path, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ws.root)
    before = ws.sealed.seal(open_there)
    bitten(ws, before.tree["a"].sha256)
    ran = llmos("fsck", "--repair", "--key-file", str(key_file))
    assert ran.code == 0 and f"repaired checkpoints/{open_there[:12]}/a from origin, sealed anew" in ran.out
    assert f"repaired checkpoints/{ws.resolve()[:12]}/a from origin, sealed anew" in ran.out
    assert "2 sealed, 2 decrypted and compared with the manifest" in ran.out
    after = ws.sealed.seal(open_there)
    assert (after.salt, after.tree["b"]) == (before.salt, before.tree["b"]) and after.tree["a"] != before.tree["a"]
    assert ws.sealed.seal(ws.resolve()).tree["a"] == after.tree["a"], "what shares it, shares it"
    assert len(list(ws.sealed.names())) == 3 and in_the_clear(ws, open_there) == []
    assert unseal(ws, "secret", with_lineage=True, ask=typed).files == 4 and fsck(ws).problems == ()


@pytest.mark.parametrize("seal_too", [False, True])
def test_without_its_key_it_is_told_where_it_is_in_the_clear(
    ws: Workspace, open_there: str, llmos: Llmos, monkeypatch: pytest.MonkeyPatch, seal_too: bool
) -> None:
    monkeypatch.chdir(ws.root)
    if seal_too:
        (ws.sealed.directory / f"{open_there}.json").write_text("{}")
    else:
        ws.sealed.path(ws.sealed.seal(open_there).tree["b"].sha256).unlink()
    ran = llmos("fetch", "--weights", "secret")
    assert ran.code == 0 and f"the weights of {open_there[:12]} were not removed here: it is sealed" in ran.err
    ran = llmos("fsck", "--repair")
    assert ran.code == 5 and "accept-loss" not in ran.err
    assert f"origin has {open_there[:12]} in the clear: `llmos fsck --repair --key-file FILE` seals it anew" in ran.err
    refused = llmos("fsck", "--accept-loss", "secret")
    assert refused.code == 6 and f"origin has {open_there[:12]} in the clear: it is no loss" in refused.err
    assert open_there not in ws.lost.all() and "llmos rm --force" in refused.err
    assert llmos("rm", "--force", "secret").code == 0  # as the hint says
    assert llmos("fetch", "--weights", "secret").code == 0 and llmos("du").code == 0
    assert ws.checkpoint("secret").id == open_there and fsck(ws).problems == ()


@pytest.mark.parametrize("seal_too", [False, True])
def test_a_seal_that_cannot_be_read_is_written_anew(
    ws: Workspace, open_there: str, key_file: Path, seal_too: bool
) -> None:
    """`seal_too`: of all that is sealed, so that nothing tells a key by."""
    for each in ws.sealed.all() if seal_too else (open_there,):
        (ws.sealed.directory / f"{each}.json").write_text("{}")
    assert fsck(ws, repair=True, key_file=key_file).problems == ()
    assert fsck(ws, key_file=key_file).opened == 2 and in_the_clear(ws, open_there) == []
    gc(ws, expire="now")
    unseal(ws, "secret", with_lineage=True, ask=typed)
    assert fsck(ws).problems == () and list(ws.sealed.names()) == []


def test_what_nobody_has_in_the_clear_is_given_up_for_good(ws: Workspace, secret: str, key_file: Path) -> None:
    seal(ws, "secret", ask=typed)
    sha256 = ws.sealed.seal(secret).tree["a"].sha256
    bitten(ws, sha256)
    assert fsck(ws, repair=True, key_file=key_file).lost == (secret,)
    assert fsck(ws, accept_loss=["secret"]).problems == ()
    assert fsck(ws).problems == () and fsck(ws, key_file=key_file).given_up[0].checkpoint == secret
    undo(ws)
    assert [each.file for each in fsck(ws).problems] == ["a"]
    (ws.sealed.directory / f"{secret}.json").write_text("{}")
    assert "makes no sense" in fsck(ws).problems[0].what
    found = fsck(ws, accept_loss=["secret"])
    assert [each.what for each in found.problems] == [
        "has other bytes than its name says, and no seal names it: --repair removes it"
    ]
    assert fsck(ws, repair=True).problems == () and not ws.sealed.path(sha256).exists()
    gc(ws, window="now", expire="now")
    assert list(ws.sealed.names()) == [] and secret not in ws.sealed and fsck(ws).problems == ()


def test_an_encrypted_remote_has_it_twice_encrypted(ws: Workspace, commit: Commit, tmp_path: Path) -> None:
    remotes.add(ws, "origin", str(tmp_path / "far"), key_file=str(tmp_path / "key"))
    made = commit(a="secret")
    seal(ws, ask=typed)
    push(ws)
    clone(str(tmp_path / "far"), tmp_path / "copy", key_file=str(tmp_path / "key"))
    other = Workspace.find(tmp_path / "copy")
    assert made.id in other.sealed and fsck(other).problems == ()
    unseal(other, ask=typed)


def test_a_seal_that_was_altered_there_is_refused(ws: Workspace, far: Path, secret: str, tmp_path: Path) -> None:
    seal(ws, "secret", ask=typed)
    push(ws)
    path = far / layout.seal_name(secret)
    good = path.read_text()
    seal_ = json.loads(good)
    first, second = seal_["tree"].values()
    for bad in (
        good.replace('"check"', '"chexk"'),
        good + " ",
        good.replace(secret, "0" * 64),
        good.replace(first["sha256"], "../../../../etc/passwd"),
        good.replace(str(first["size"]), str(second["size"])),
        "",
        "[" * 100_000,
    ):
        path.write_text(bad)
        with pytest.raises(Corrupt, match="the seal of"):
            clone(str(far), tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
    path.write_text(good)
    encrypted = far / layout.object_name(first["sha256"])
    encrypted.chmod(0o644)
    encrypted.write_bytes(bytes([encrypted.read_bytes()[0] ^ 1]) + encrypted.read_bytes()[1:])
    with pytest.raises(Corrupt, match="is not what its name says"):
        clone(str(far), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_remote_that_has_it_in_the_clear_is_told_of(ws: Workspace, far: Path, secret: str) -> None:
    push(ws)
    notes: list[str] = []
    seal(ws, "secret", ask=typed, emit=lambda event: notes.append(getattr(event, "message", "")))
    assert [note for note in notes if note.startswith("origin was sent") and secret[:12] in note]
    with pytest.raises(Untrusted, match="there is no key"):
        unseal(ws, "secret", ask=nobody)
