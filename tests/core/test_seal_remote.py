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
from llmos_cli.operations.unseal import unseal
from tests.core.conftest import Commit
from tests.core.test_seal import content, in_the_clear, nobody, typed

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
