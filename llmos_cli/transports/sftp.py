"""Another machine by ssh: `sftp://user@host:port/folder`; `/~/folder` is below the home folder there.

    ~/.ssh/config says names, users, ports and keys, and the agent has keys, as for every ssh

paramiko itself rather than fsspec's wrapping of it, which accepts whatever host answers: a host must be in known_hosts here.
Uploads grow in `uploads/` and are compared before they are renamed; a ref's file gets its name by the rename that fails where
there is one already, which OpenSSH does as a link, and so once and whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import queue
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from llmos_cli.core import urls
from llmos_cli.core.remote.store import CHUNK, Content, Heard, sent_from
from llmos_cli.errors import Corrupt, LlmosError, NotFound, Untrusted, UsageError

SCHEMES = ("sftp", "ssh")
_CHANNELS = 4
"""At once: sshd allows ten sessions on a connection, and a comparison takes one more each."""
_SECONDS = 30.0


def open_store(url: str, root: Path, identity: str) -> SftpStore:
    try:
        import paramiko
    except ImportError:
        raise UsageError(f"{url} needs the package paramiko", hint="pip install 'llmos-cli[remotes]'") from None
    parts = urls.split(url)
    folder = unquote(parts.path).removeprefix("/~/")
    if not parts.hostname or not folder.strip("/"):
        raise UsageError(f"{url} names no host and folder", hint="sftp://user@host/folder")
    with _told(url):
        return SftpStore(url, _connected(paramiko, parts), folder, identity)


def _connected(paramiko: Any, parts: Any) -> Any:
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what goes wrong is told once, by us
    known = _ssh_config(paramiko, parts.hostname)
    client = paramiko.SSHClient()
    client.load_system_host_keys()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    proxy = known.get("proxycommand")
    client.connect(
        known.get("hostname", parts.hostname),
        port=parts.port or int(known.get("port", 22)),
        username=parts.username or known.get("user"),
        key_filename=[str(Path(each).expanduser()) for each in known.get("identityfile", ())] or None,
        sock=paramiko.ProxyCommand(proxy) if proxy else None,
        timeout=_SECONDS,
        banner_timeout=_SECONDS,
        auth_timeout=_SECONDS,
    )
    return client


def _ssh_config(paramiko: Any, host: str) -> dict[str, Any]:
    path = Path("~/.ssh/config").expanduser()
    return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host)) if path.is_file() else {}


class SftpStore:
    no_exclusive_create = ""

    def __init__(self, url: str, client: Any, folder: str, identity: str) -> None:
        self._url = url
        self._client = client
        self._folder = PurePosixPath(folder)
        self._identity = identity
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(_CHANNELS):
            self._idle.put(None)

    def read(self, name: str, limit: int) -> bytes | None:
        with self._channel() as sftp, contextlib.suppress(FileNotFoundError), sftp.open(self._at(name), "rb") as file:
            data: bytes = file.read(limit + 1)
            if len(data) > limit:
                raise Corrupt(
                    f"{name} in {self._url} is larger than such a file can be", hint="ask who can write there"
                )
            return data
        return None

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        with self._channel() as sftp:
            try:
                file = sftp.open(self._at(name), "rb")
            except FileNotFoundError:
                raise NotFound(f"{name} is not in {self._url} any more", hint="try again") from None
            with file:
                file.seek(start)
                if not start:
                    file.prefetch(max_concurrent_requests=64)
                while chunk := file.read(CHUNK):
                    yield chunk

    def size(self, name: str) -> int | None:
        with self._channel() as sftp:
            return _size(sftp, self._at(name))

    def names(self, folder: str) -> set[str]:
        with self._channel() as sftp:
            return set(_walk(sftp, self._at(folder), ""))

    def put(self, name: str, content: Content, heard: Heard) -> None:
        part, target = self._part(name), self._at(name)
        with self._channel() as sftp:
            _make_folder(sftp, PurePosixPath(part).parent)
            _make_folder(sftp, PurePosixPath(target).parent)
            resumed = _size(sftp, part) is not None
            if not (self._sent(sftp, part, content, heard) or (resumed and self._sent(sftp, part, content, heard))):
                raise LlmosError(f"{name} arrived in {self._url} damaged", hint="try again; is the disk there sound?")
            sftp.posix_rename(part, target)

    def create(self, name: str, data: bytes) -> bool:
        part, target = self._part(os.urandom(8).hex()), self._at(name)
        with self._channel() as sftp:
            _make_folder(sftp, PurePosixPath(part).parent)
            _make_folder(sftp, PurePosixPath(target).parent)
            with sftp.open(part, "wb") as file:
                file.write(data)
            try:
                sftp.rename(part, target)
            except OSError:
                taken = _size(sftp, target) is not None
                sftp.remove(part)
                if not taken:
                    raise
                return False
        return True

    def close(self) -> None:
        self._client.close()

    def _at(self, name: str) -> str:
        return str(self._folder / name)

    def _part(self, name: str) -> str:
        return self._at(f"uploads/{name.replace('/', '-')}.{self._identity}")

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        """One of a few, for one thread at a time: an SFTPClient cannot tell two threads' answers apart."""
        sftp = self._idle.get()
        try:
            with _told(self._url):
                if sftp is None:
                    sftp = self._client.open_sftp()
                    sftp.get_channel().settimeout(2 * _SECONDS)
                yield sftp
        finally:
            self._idle.put(sftp)

    def _sent(self, sftp: Any, part: str, content: Content, heard: Heard) -> bool:
        """Send what the part lacks, compare all of it; False, and no part, where other bytes arrived."""
        try:
            right = _append(sftp, part, content, heard) == self._hash(sftp, part)
        except Corrupt:
            sftp.remove(part)
            raise
        if not right:
            sftp.remove(part)
        return right

    def _hash(self, sftp: Any, path: str) -> str:
        """Told by the other machine where it lets us run `sha256sum`; read back where it does not."""
        told = self._asked(f"sha256sum -- {shlex.quote(path)}")
        if len(told) > 64 and told[64] in " \t" and not told.startswith("\\"):
            return told[:64]
        digest = hashlib.sha256()
        with sftp.open(path, "rb") as file:
            file.prefetch(max_concurrent_requests=64)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _asked(self, command: str) -> str:
        import paramiko

        try:
            _, out, _ = self._client.exec_command(command)
            text: str = out.read(1000).decode(errors="replace")
            return text if out.channel.recv_exit_status() == 0 else ""
        except paramiko.SSHException:
            return ""


def _append(sftp: Any, part: str, content: Content, heard: Heard) -> str:
    """The hash of what was to be sent, the part of it that was there already included."""
    there = min(_size(sftp, part) or 0, content.size)
    with sftp.open(part, "r+b" if there else "wb") as file:
        file.truncate(there)
        file.seek(there)
        file.set_pipelined(True)
        return sent_from(there, content, file.write, heard)


def _size(sftp: Any, path: str) -> int | None:
    try:
        status = sftp.lstat(path)
    except FileNotFoundError:
        return None
    return int(status.st_size) if stat.S_ISREG(status.st_mode) else None


def _walk(sftp: Any, folder: str, prefix: str) -> Iterator[str]:
    try:
        entries = sftp.listdir_attr(folder)
    except FileNotFoundError:
        return
    for entry in entries:
        if stat.S_ISDIR(entry.st_mode):
            yield from _walk(sftp, f"{folder}/{entry.filename}", f"{prefix}{entry.filename}/")
        else:
            yield prefix + entry.filename


def _make_folder(sftp: Any, folder: PurePosixPath) -> None:
    try:
        if stat.S_ISDIR(sftp.stat(str(folder)).st_mode):
            return
    except FileNotFoundError:
        pass
    _make_folder(sftp, folder.parent)
    try:
        sftp.mkdir(str(folder))
    except OSError:
        sftp.stat(str(folder))  # somebody else made it a moment ago


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """What the other machine or the way to it said, in one sentence."""
    import paramiko

    again = "try again: nothing need be sent twice"
    try:
        yield
    except paramiko.BadHostKeyException as error:
        raise Untrusted(
            f"{url} has another host key than the one that is known",
            hint="find out why; `ssh-keygen -R HOST` forgets it",
        ) from error
    except paramiko.AuthenticationException as error:
        raise LlmosError(
            f"{url} lets us in with no key that was offered", hint="does `ssh` to it work without a password?"
        ) from error
    except paramiko.SSHException as error:
        if "not found in known_hosts" in str(error):
            raise Untrusted(
                f"the host of {url} is not known", hint="`ssh` to it once, and compare the key it shows"
            ) from error
        raise LlmosError(f"cannot reach {url}: {error}", hint=again) from error
    except PermissionError as error:
        raise LlmosError(f"{url} denies permission: {error}", hint="who owns the folder there?") from error
    except (EOFError, TimeoutError, ConnectionError) as error:
        raise LlmosError(f"the connection to {url} broke off", hint=again) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = error.strerror or str(error) or errno.errorcode.get(error.errno or 0, "no reason")
        raise LlmosError(f"{url} refused: {reason}", hint=again) from error
