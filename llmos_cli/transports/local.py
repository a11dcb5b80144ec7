"""A folder of this machine: another disk, a network share, a USB stick.

Uploads grow in `uploads/`, are read back and hashed, synced and renamed. A ref's file appears by link(2), which is one of the
few things that NFS too does once and whole; where the disk knows no links, an exclusive lock stands for it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos_cli.core import atomic, urls
from llmos_cli.core.listing import plainly
from llmos_cli.core.locks import lock
from llmos_cli.core.objects import files_below
from llmos_cli.core.remote.store import CHUNK, Content, Heard, sent_from
from llmos_cli.errors import Corrupt, LlmosError, NotFound, UsageError

SCHEMES = ("file",)
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def open_store(url: str, root: Path, identity: str) -> LocalStore:
    place = (root / urls.local(url)).resolve()
    if place.exists() and not place.is_dir():
        raise UsageError(f"{place} is a file", hint="a remote is a folder")
    if not place.parent.is_dir():
        raise NotFound(
            f"there is no folder {place.parent}", hint="is the disk mounted? The remote's own folder is made"
        )
    return LocalStore(place, identity)


class LocalStore:
    no_exclusive_create = ""

    def __init__(self, place: Path, identity: str) -> None:
        self._place = place
        self._identity = identity

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            with open(self._path(name), "rb", opener=plainly) as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > limit:
            raise Corrupt(f"{name} in {self._place} is larger than such a file can be", hint="ask who can write there")
        return data

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        try:
            with open(self._path(name), "rb", opener=plainly) as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise NotFound(f"{name} is not in {self._place} any more", hint="try again") from None

    def size(self, name: str) -> int | None:
        try:
            status = self._path(name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def names(self, folder: str) -> set[str]:
        try:
            return set(files_below(self._path(folder) if folder else self._place))
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def put(self, name: str, content: Content, heard: Heard) -> None:
        target = self._path(name)
        part = self._place / "uploads" / f"{name.replace('/', '-')}.{self._identity}"
        with self._refusals(target):
            atomic.make_directory(part.parent)
            atomic.make_directory(target.parent)
            resumed = part.exists()
            if not (_sent(part, content, heard) or (resumed and _sent(part, content, heard))):
                raise LlmosError(f"{name} arrived in {self._place} damaged", hint="try again; is that disk sound?")
            part.replace(target)
            atomic.sync_directory(target.parent)

    def create(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        part = self._place / "uploads" / f"{os.urandom(8).hex()}.{self._identity}"
        with self._refusals(target):
            atomic.write_bytes(part, data)
            try:
                atomic.make_directory(target.parent)
                created = self._linked(part, target)
                atomic.sync_directory(target.parent)
            finally:
                part.unlink(missing_ok=True)
        return created

    @contextmanager
    def _refusals(self, path: Path) -> Iterator[None]:
        """As of a workspace's files, but that there is nothing to collect here."""
        try:
            with atomic.refusals(path):
                yield
        except LlmosError as told:
            if not isinstance(told.__cause__, OSError):
                raise
            hint = f"{self._place} is a remote's folder: is there room, and may you write there? Nothing was lost"
            raise LlmosError(told.message, hint=hint) from told.__cause__

    def _linked(self, part: Path, target: Path) -> bool:
        try:
            os.link(part, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with lock(self._place / "uploads" / "lock"):
                if target.exists():
                    return False
                part.rename(target)
        return True

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        """Inside the remote, whatever links somebody put there."""
        path = self._place / name
        if not path.parent.resolve().is_relative_to(self._place):
            raise Corrupt(f"{name} in {self._place} leads out of it", hint="ask who put a link there")
        return path


def _sent(part: Path, content: Content, heard: Heard) -> bool:
    """Write what the part lacks and read all of it back; False, and no part, where other bytes arrived: an interrupted upload
    may have left them."""
    try:
        right = _append(part, content, heard) == _hash(part)
    except Corrupt:
        part.unlink()
        raise
    if not right:
        part.unlink()
    return right


def _append(part: Path, content: Content, heard: Heard) -> str:
    """The hash of what was to be sent, the part of it that was there already included."""
    with open(plainly(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
        there = min(file.seek(0, os.SEEK_END), content.size)
        file.truncate(there)
        file.seek(there)
        digest = sent_from(there, content, file.write, heard)
        file.flush()
        os.fsync(file.fileno())
    return digest


def _hash(path: Path) -> str:
    with open(path, "rb", opener=plainly) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
