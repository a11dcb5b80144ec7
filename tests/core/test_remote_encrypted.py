"""Encrypted remotes: the place sees neither names nor contents, and nothing that it does to them goes unnoticed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.cipher import PIECE, encrypted_size
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.store import Content
from llmos_cli.core.remote.vault import Vault
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, LlmosError, Untrusted
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import push
from llmos_cli.operations.tag import tag
from llmos_cli.transports.local import LocalStore
from tests.conftest import Llmos
from tests.core.conftest import Commit, commit_to

KEY, SALT = bytes(range(32)), bytes(32)
pytest.importorskip("cryptography", reason="needs the tool cryptography")


@pytest.fixture
def far(tmp_path: Path, ws: Workspace) -> Path:
    remotes.add(ws, "origin", str(tmp_path / "far"), key_file=str(tmp_path / "key"))
    return tmp_path / "far"


def at(folder: Path) -> Vault:
    return Vault(LocalStore(folder, "me"), KEY, SALT)


def content(data: bytes) -> Content:
    return Content(len(data), lambda: iter((data[:3], data[3:])))


def test_there_and_back_and_nothing_to_be_seen(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(secret_name="a very secret content")
    tag(ws, "secret-tag")
    second = commit(secret_name="another secret content")
    push(ws)
    clone(str(far), far.parent / "copy", key_file=str(far.parent / "key"))
    other = Workspace.find(far.parent / "copy")
    assert (other.resolve(), other.resolve("secret-tag")) == (second.id, first.id)
    assert fsck(other).problems == ()
    assert len(other.runs.list()) == 2
    third = commit_to(other, {"secret_name": "a third secret"})
    push(other)
    assert pull(ws).checkpoint == third.id
    assert push(ws).refs == ()
    assert fetch(other).files == 0
    ids = [first.id, second.id, hashlib.sha256(b"a very secret content").hexdigest()]
    words = ["secret", "main", "train", "manifest", *ids, *(record.id for record in ws.runs.list())]
    known = [word.encode() for word in words] + [bytes.fromhex(each) for each in ids]
    for path in far.rglob("*"):
        seen = str(path.relative_to(far)).encode() + (path.read_bytes() if path.is_file() else b"")
        assert [word for word in known if word in seen] == []
    assert (far.parent / "key").stat().st_mode & 0o077 == 0


def test_a_wrong_key_is_one_clear_error(
    ws: Workspace, commit: Commit, far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(a="1")
    push(ws)
    copy = far.parent / "copy"
    with pytest.raises(Untrusted, match="is encrypted") as error:
        clone(str(far), copy)
    assert error.value.exit_code == 5
    with pytest.raises(Untrusted, match="remote origin is encrypted, and LLMOS_KEY is not set"):
        clone(str(far), copy, encrypted=True)
    with pytest.raises(Untrusted, match=r"cannot be read from .*: No such file"):
        clone(str(far), copy, key_file=str(far.parent / "nokey"))
    monkeypatch.setenv("LLMOS_KEY", "0" * 64)
    with pytest.raises(Untrusted, match=r"the key is not that of .*/far"):
        clone(str(far), copy, encrypted=True)
    with pytest.raises(Untrusted, match=r"the key is not that of .*/far"):
        push(ws)
    monkeypatch.setenv("LLMOS_KEY", "secret")
    with pytest.raises(Untrusted, match="LLMOS_KEY holds no key: 64 hexadecimal digits"):
        push(ws)
    assert not copy.exists()
    monkeypatch.setenv("LLMOS_KEY", (far.parent / "key").read_text())
    clone(str(far), copy, encrypted=True)


def test_a_key_that_is_not_a_remotes_own_is_refused_as_it_is_added(
    ws: Workspace, commit: Commit, far: Path, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(a="1")
    push(ws)
    other = Workspace.create(far.parent / "other")
    monkeypatch.chdir(other.root)
    settings, typo, key = (other.root / "llmos.yaml").read_text(), far.parent / "kye", far.parent / "key"
    ran = llmos("remote", "add", "vault", far, "--key-file", typo)
    assert ran.code == 5 and f"is encrypted with another key, and there is no {typo}" in ran.err
    assert not typo.exists()
    typo.write_text("0" * 64)
    ran = llmos("remote", "add", "vault", far, "--key-file", typo)
    assert (ran.code, f"the key is not that of {far}" in ran.err) == (5, True)
    ran = llmos("remote", "add", "vault", far)
    assert (ran.code, f"{far} is encrypted" in ran.err, "--key-file FILE" in ran.err) == (5, True, True)
    assert (other.root / "llmos.yaml").read_text() == settings
    assert llmos("remote", "add", "vault", far, "--key-file", key).code == 0
    assert llmos("fetch", "vault").code == 0


def test_where_a_remote_is_encrypted_after_it_was_added_the_way_on_is_told(
    ws: Workspace, commit: Commit, far: Path, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`push` has no `--key-file`."""
    other = Workspace.create(far.parent / "other")
    remotes.add(other, "origin", str(far))
    commit(a="1")
    push(ws)
    monkeypatch.chdir(other.root)
    commit_to(other, {"a": "2"})
    ran = llmos("push")
    assert (ran.code, "`llmos remote rm`" in ran.err, "`remote add`" in ran.err) == (5, True, True)
    assert llmos("remote", "rm", "origin").code == 0
    assert llmos("remote", "add", "origin", far, "--key-file", far.parent / "key").code == 0
    assert llmos("fetch").code == 0


def test_an_unencrypted_remote_takes_no_key(ws: Workspace, commit: Commit, tmp_path: Path) -> None:
    remotes.add(ws, "plain", str(tmp_path / "plain"))
    commit(a="1")
    push(ws, remote="plain")
    with pytest.raises(Untrusted, match="is not encrypted, and has begun"):
        remotes.add(ws, "again", str(tmp_path / "plain"), key_file=str(tmp_path / "new"))
    (tmp_path / "old").write_text("0" * 64)
    with pytest.raises(Untrusted, match="is not encrypted"):
        remotes.add(ws, "again", str(tmp_path / "plain"), key_file=str(tmp_path / "old"))
    assert not (tmp_path / "new").exists() and list(remotes.settings(ws)) == ["plain"]


def test_a_remote_that_stops_being_encrypted_is_not_trusted(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    push(ws)
    shutil.rmtree(far)
    plain = Workspace.create(far.parent / "plain")
    remotes.add(plain, "origin", str(far))
    commit_to(plain, {"a": "theirs"})
    push(plain)
    for act in (push, fetch):
        with pytest.raises(Untrusted, match="is not encrypted, and there is a key for it"):
            act(ws)


@settings(deadline=None)
@given(
    size=st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 5]),
    start=st.integers(0, 3 * PIECE),
)
def test_any_size_is_read_from_anywhere(tmp_path_factory: pytest.TempPathFactory, size: int, start: int) -> None:
    folder, data = tmp_path_factory.mktemp("far"), (b"0123456789abcdef" * (size // 16 + 1))[:size]
    at(folder).put("objects/x", content(data), lambda _: None)
    assert at(folder).size("objects/x") == size
    assert b"".join(at(folder).chunks("objects/x", 0)) == data
    if start < size:
        assert b"".join(at(folder).chunks("objects/x", start)) == data[start:]


def test_what_is_done_to_a_file_is_noticed(tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE + 100)
    at(tmp_path).put("objects/x", content(data), lambda _: None)
    at(tmp_path).put("objects/y", content(os.urandom(2 * PIECE + 100)), lambda _: None)
    path, other = (tmp_path / at(tmp_path).stored(f"objects/{name}") for name in "xy")
    sealed, piece, header = path.read_bytes(), PIECE + 16, 40
    pieces = [sealed[begin : begin + piece] for begin in range(header, len(sealed), piece)]
    done = {
        "a flipped bit": sealed[:100] + bytes([sealed[100] ^ 1]) + sealed[101:],
        "a flipped bit of the salt": sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:],
        "a flipped bit of the end": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "cut off after a piece": sealed[: header + piece],
        "cut off within a piece": sealed[:-7],
        "nothing but its header": sealed[:header],
        "nothing": b"",
        "a piece left out": sealed[:header] + pieces[0] + pieces[2],
        "pieces in another order": sealed[:header] + pieces[1] + pieces[0] + pieces[2],
        "a piece twice": sealed + pieces[2],
        "more at the end": sealed + b"x",
        "another file": other.read_bytes(),
        "another file's piece": sealed[:header]
        + other.read_bytes()[header : header + piece]
        + sealed[header + piece :],
        "plain bytes": data,
    }
    for what, bytes_ in done.items():
        path.chmod(0o644)
        path.write_bytes(bytes_)
        with pytest.raises(Corrupt, match="was altered"):
            print(what, len(b"".join(at(tmp_path).chunks("objects/x", 0))))
    path.write_bytes(sealed)
    assert b"".join(at(tmp_path).chunks("objects/x", 0)) == data


def test_refs_that_are_exchanged_or_taken_back(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    tag(ws, "base")
    commit(a="2")
    push(ws)
    one, other = sorted(path for path in (far / "refs").iterdir())
    text = (one / "00000001").read_bytes()
    (one / "00000001").write_bytes((other / "00000001").read_bytes())
    with pytest.raises(Corrupt, match="was altered"):
        fetch(ws)
    (one / "00000001").write_bytes(text)
    (one / "00000002").write_bytes(text)
    with pytest.raises(Corrupt, match="was altered"):
        fetch(ws)


def test_an_object_is_sealed_to_the_same_bytes_and_a_ref_never(tmp_path: Path) -> None:
    """So that an upload goes on where it stopped; and a nonce is never used for two contents."""
    data = os.urandom(PIECE + 5)
    sealed = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        at(folder).put("objects/x", content(data), lambda _: None)
        at(folder).create("refs/heads%2fmain/00000001", b"one")
        sealed.append(
            [(folder / at(folder).stored(name)).read_bytes() for name in ("objects/x", "refs/heads%2fmain/00000001")]
        )
    assert sealed[0][0] == sealed[1][0]
    assert sealed[0][1] != sealed[1][1]
    elsewhere = Vault(LocalStore(tmp_path, "me"), KEY, b"1" * 32)
    assert elsewhere.stored("objects/x") != at(tmp_path).stored("objects/x")


def test_bytes_that_are_not_those_of_the_name_are_never_encrypted(tmp_path: Path) -> None:
    def damaged() -> object:
        yield b"x" * (3 * PIECE)
        raise Corrupt("damaged", hint="")

    with pytest.raises(Corrupt, match="damaged"):
        at(tmp_path).put("objects/x", Content(3 * PIECE, damaged), lambda _: None)  # type: ignore[arg-type]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_an_upload_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data, sent = os.urandom(4 * PIECE), []
    at(tmp_path).put("objects/x", content(data), sent.append)
    path = tmp_path / at(tmp_path).stored("objects/x")
    sealed = path.read_bytes()
    part = tmp_path / "uploads" / f"{at(tmp_path).stored('objects/x').replace('/', '-')}.me"
    path.unlink()
    part.write_bytes(sealed[: 2 * PIECE + 7])
    inode = part.stat().st_ino
    at(tmp_path).put("objects/x", content(data), lambda _: None)
    assert (path.stat().st_ino, path.read_bytes()) == (inode, sealed)


def test_a_known_answer() -> None:
    """The format, as a second implementation would have it: HKDF and AES-GCM of the standard, applied by hand."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    def derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
        return HKDF(SHA256(), 32, salt, purpose).derive(key)

    import hmac

    names = derived(KEY, SALT, b"llmos names")
    hidden = hmac.new(names, b"objects/ab/cd", "sha256").hexdigest()
    stored = f"objects/{hidden[:2]}/{hidden[2:]}"
    assert at(Path("/nowhere")).stored("objects/ab/cd") == stored
    salt = hmac.digest(derived(KEY, SALT, b"llmos salts"), b"objects/ab/cd", "sha256")
    cipher = AESGCM(derived(derived(KEY, SALT, b"llmos contents"), salt, b"llmos file " + stored.encode()))
    sealed = b"llmos-v1" + salt + cipher.encrypt(bytes(11) + b"\x01", b"content", None)
    assert b"".join(at(Path("/nowhere"))._opened(stored, iter((sealed,)), 0)) == b"content"
    assert encrypted_size(7) == len(sealed)


def test_settings_of_an_encrypted_remote(ws: Workspace, far: Path) -> None:
    assert "encrypted: true" in (ws.root / "llmos.yaml").read_text()
    (place,) = remotes.remotes(ws).remotes
    assert (place.encrypted, place.key_file) == (True, str(far.parent / "key"))
    assert len((far.parent / "key").read_text().strip()) == 64
    with pytest.raises(LlmosError, match="there is a remote origin already"):
        remotes.add(ws, "origin", str(far))
    assert json.loads(layout.format_text()) == {"llmos": "remote", "format": 1}
