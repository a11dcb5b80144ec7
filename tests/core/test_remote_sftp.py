"""Remotes by ssh: a real client against a real sshd, begun by the tests on loopback with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos_cli.core.remote.store import Content
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, Untrusted, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.clone import clone
from llmos_cli.operations.push import push
from llmos_cli.transports import sftp
from tests.core.conftest import Commit
from tests.core.places import contest, created_once, there_and_back

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(SSHD is None or shutil.which("ssh-keygen") is None, reason="needs the tool sshd"),
]


def keys(folder: Path, name: str) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    return (folder / f"{name}.pub").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """An sshd that lets in one key, and answers with a host key of its own."""
    keys(folder, "host")
    (folder / "authorized_keys").write_text(keys(folder, "user"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {number}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("w")
    ) as process:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.05)
        yield number
        process.kill()


@pytest.fixture
def host(folder: Path, port: int, own_home: Path, tmp_path: Path) -> str:
    """The URL of an empty folder there; the host is known, and the key to it is in the user's configuration."""
    (ssh := own_home / ".ssh").mkdir(mode=0o700)
    kind, key = (folder / "host.pub").read_text().split()[:2]
    (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (ssh / "config").write_text(f"Host 127.0.0.1\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n")
    return f"sftp://127.0.0.1:{port}{tmp_path}/far/models"


def test_there_and_back(ws: Workspace, host: str, tmp_path: Path) -> None:
    there_and_back(ws, host, tmp_path)
    clone(str(tmp_path / "far" / "models"), tmp_path / "local")
    assert Workspace.find(tmp_path / "local").resolve() == ws.resolve()


def test_of_many_who_push_at_once_one_wins_and_the_others_know(
    ws: Workspace, commit: Commit, host: str, tmp_path: Path
) -> None:
    remotes.add(ws, "origin", host)
    commit(a="1")
    push(ws)
    contest(ws, host, tmp_path)


def test_a_ref_is_created_once(host: str, tmp_path: Path) -> None:
    store = sftp.open_store(host, tmp_path, "me")
    created_once(store)
    store.close()


@pytest.mark.parametrize("asks", [True, False], ids=["sha256sum there", "read back"])
@pytest.mark.parametrize("there", [b"", b"0123", b"01x3", b"0123456789abcdef and more"])
def test_an_upload_goes_on_where_it_stopped(
    host: str, tmp_path: Path, there: bytes, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = sftp.open_store(host, tmp_path, "me"), b"0123456789abcdef"
    if not asks:  # as where the account may do nothing but sftp
        monkeypatch.setattr(store, "_asked", lambda command: "")
    far = tmp_path / "far" / "models"
    (far / "uploads").mkdir(parents=True)
    (far / "uploads" / "objects-x.me").write_bytes(there)
    store.put("objects/x", Content(len(data), lambda: iter((data[:7], data[7:]))), lambda _: None)
    assert (far / "objects" / "x").read_bytes() == data
    assert b"".join(store.chunks("objects/x", 10)) == data[10:]
    assert list((far / "uploads").iterdir()) == []
    store.close()


def test_what_goes_wrong_is_a_sentence(
    ws: Workspace, commit: Commit, host: str, port: int, own_home: Path, folder: Path
) -> None:
    commit(a="1")
    remotes.add(ws, "origin", host)
    with pytest.raises(UsageError, match="names no host and folder"):
        remotes.add(ws, "bad", "sftp://127.0.0.1")
    config = own_home / ".ssh" / "config"
    kept = config.read_text()
    keys(own_home, "other")
    config.write_text(kept.replace(f"{folder}/user", f"{own_home}/other"))
    with pytest.raises(LlmosError, match="lets us in with no key that was offered"):
        push(ws)
    config.write_text(kept)
    known = own_home / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(own_home / 'other.pub').read_text()}")
    with pytest.raises(Untrusted, match="another host key than the one that is known"):
        push(ws)
    known.write_text("")
    with pytest.raises(Untrusted, match=r"the host of sftp://.* is not known"):
        push(ws)
    notes: list[str] = []
    for name, given in (
        ("closed", ""),
        ("vault", str(folder / "new.key")),
    ):  # nothing need answer for a name to be given
        remotes.add(
            ws,
            name,
            "sftp://127.0.0.1:9/x",
            key_file=given,
            emit=lambda event: notes.append(getattr(event, "message", "")),
        )
        assert f"nobody could look at what is in {name} already: " in notes[-1] and "sftp://127.0.0.1:9/x" in notes[-1]
    assert (folder / "new.key").exists()
    with pytest.raises(LlmosError, match=r"sftp://127\.0\.0\.1:9/x"):
        push(ws, remote="closed")
