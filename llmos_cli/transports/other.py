"""Whatever else fsspec speaks: `gs://`, `abfs://`, `webdav://`, `hf://`... Objects are sent and fetched; a ref moves with --force only.

fsspec has no word for "create this unless it is there", so two who push at once could not be told apart.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmos_cli.core.remote.store import CHUNK, Content, Heard
from llmos_cli.errors import Corrupt, LlmosError, NotFound, UsageError

SCHEMES = ()


def open_store(url: str, root: Path, identity: str) -> OtherStore:
    from fsspec.core import url_to_fs

    try:
        system, folder = url_to_fs(url)
    except ImportError as error:
        raise UsageError(f"{url} needs another package: {error}", hint="install it with pip") from error
    except ValueError as error:
        raise UsageError(
            f"{url} is no URL that fsspec knows: {error}", hint="a folder, sftp://..., s3://..."
        ) from error
    return OtherStore(url, system, str(folder).rstrip("/"), identity)


class OtherStore:
    def __init__(self, url: str, system: Any, folder: str, identity: str) -> None:
        self.no_exclusive_create = f"{url.partition(':')[0]} has no way known here to tell two who push at once apart"
        self._url = url
        self._system = system
        self._folder = folder
        self._identity = identity

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            with self._told(), self._system.open(self._at(name), "rb") as file:
                data: bytes = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            raise Corrupt(f"{name} in {self._url} is larger than such a file can be", hint="ask who can write there")
        return data

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        try:
            with self._told(), self._system.open(self._at(name), "rb") as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except FileNotFoundError:
            raise NotFound(f"{name} is not in {self._url} any more", hint="try again") from None

    def size(self, name: str) -> int | None:
        try:
            with self._told():
                found = self._system.info(self._at(name))
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def names(self, folder: str) -> set[str]:
        place = self._at(folder)
        try:
            with self._told():
                self._system.invalidate_cache()
                return {str(path)[len(place.rstrip("/")) + 1 :] for path in self._system.find(place)}
        except FileNotFoundError:
            return set()

    def put(self, name: str, content: Content, heard: Heard) -> None:
        """Under another name first: not every place makes a file appear whole."""
        part, digest = self._at(f"uploads/{name.replace('/', '-')}.{self._identity}"), hashlib.sha256()
        with self._told():
            for path in (part, self._at(name)):
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._system.open(part, "wb") as file:
                for chunk in content.chunks():
                    digest.update(chunk)
                    file.write(chunk)
                    heard(len(chunk))
            if self._hash(part) != digest.hexdigest():
                self._system.rm_file(part)
                raise LlmosError(f"{name} arrived in {self._url} damaged", hint="try again")
            self._system.mv(part, self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        if self.size(name) is not None:
            return False
        self.put(name, Content(len(data), lambda: iter((data,))), lambda _: None)
        return True

    def close(self) -> None:
        pass

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}" if name else self._folder

    def _hash(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._system.open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, NotImplementedError) as error:
            raise LlmosError(f"{self._url} refused: {error or type(error).__name__}", hint="try again") from error
