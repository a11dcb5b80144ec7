"""A store: a place that keeps files under names. Each family of places has one, a file of `transports/`.

A store knows names and bytes and nothing of checkpoints; names are relative and have `/` between their parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

Heard = Callable[[int], None]
"""Is told of each bytes that have got there, as they do."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Content:
    """Bytes to be sent. `chunks()` gives them from the beginning, each time anew, and raises after the last one where they
    are not what they should be: so what arrived whole is right."""

    size: int
    chunks: Callable[[], Iterator[bytes]]


class Store(Protocol):
    @property
    def no_exclusive_create(self) -> str:
        """Why `create` cannot tell two writers apart here; empty where it can."""

    def read(self, name: str, limit: int) -> bytes | None:
        """All of a small file, None when it is not there; Corrupt where it has more than `limit` bytes."""

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on; NotFound where there is none."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when it is not there."""

    def names(self, folder: str) -> set[str]:
        """Of all files below a folder, relative to it; none where there is no such folder."""

    def put(self, name: str, content: Content, heard: Heard) -> None:
        """Make the file, whole or not at all; compared with what was sent before it gets its name. One that was cut off goes
        on where it stopped when it is put again."""

    def create(self, name: str, data: bytes) -> bool:
        """Make a small file, whole or not at all, if there is none of that name; whether it did."""

    def close(self) -> None:
        """Nothing more will be asked."""


def sent_from(there: int, content: Content, write: Callable[[bytes], object], heard: Heard) -> str:
    """Write what comes after the first `there` bytes; the hash of all of it, of those bytes as they should be."""
    digest, at = hashlib.sha256(), 0
    for chunk in content.chunks():
        digest.update(chunk)
        if at + len(chunk) > there:
            write(chunk[max(there - at, 0) :])
        at += len(chunk)
        heard(len(chunk))
    return digest.hexdigest()


def whole(data: bytes) -> Content:
    return Content(len(data), lambda: iter((data,)))
