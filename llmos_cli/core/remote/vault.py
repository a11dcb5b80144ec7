"""A vault: a store whose place sees neither names nor contents, because both are encrypted here.

Names become HMACs; what remains to be seen is how many files of each kind there are, how large they are, and when they came.
Contents are encrypted in pieces (`core/cipher.py`). An object's salt comes from its name, which is the hash of its content: the
same bytes are encrypted to the same bytes, and an upload that was cut off can go on. That is safe only while one name means
one content, so an object is hashed before a byte of it is encrypted. All other salts are random.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from llmos_cli.core.cipher import (
    HEADER,
    PIECE,
    SALT,
    TAG,
    Altered,
    Cipher,
    chained,
    content_size,
    encrypted_size,
    exactly,
)
from llmos_cli.core.hashed import place
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.hostile import AGAIN
from llmos_cli.core.remote.store import Content, Heard, Store, whole
from llmos_cli.errors import Corrupt


class Vault:
    """`key` is the user's (32 bytes), `salt` the remote's own, so that one key gives other names elsewhere."""

    def __init__(self, store: Store, key: bytes, salt: bytes) -> None:
        self._store = store
        self._cipher = Cipher(key, salt)

    @property
    def no_exclusive_create(self) -> str:
        return self._store.no_exclusive_create

    def check(self) -> str:
        """What the format file holds to tell a wrong key by."""
        return self._cipher.check()

    def stored(self, name: str) -> str:
        """What a file is called there: `refs/HMAC/00000007`, `objects/HMAC`, the latter in 256 folders."""
        kind, _, rest = name.partition("/")
        if kind == layout.REFS:
            folder, _, number = rest.rpartition("/")
            return f"{kind}/{self._cipher.mac(f'{kind}/{folder}')}/{number}"
        hidden = self._cipher.mac(name)
        return f"{kind}/{place(hidden)}" if kind == layout.OBJECTS else f"{kind}/{hidden}"

    def read(self, name: str, limit: int) -> bytes | None:
        return self.read_stored(self.stored(name), limit)

    def read_stored(self, stored: str, limit: int) -> bytes | None:
        """Of a file that was found by listing, whose name only its content tells."""
        sealed = self._store.read(stored, encrypted_size(limit))
        return None if sealed is None else b"".join(self._opened(stored, iter((sealed,)), 0))

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        stored = self.stored(name)
        first = start // PIECE
        if first == 0:
            sealed = self._store.chunks(stored, 0)
        else:
            header = next(iter(exactly(self._store.chunks(stored, 0), HEADER)), b"")
            sealed = chained(header, self._store.chunks(stored, HEADER + first * (PIECE + TAG)))
        for piece in self._opened(stored, sealed, first):
            yield piece[start - first * PIECE :] if start > first * PIECE else piece
            start = 0

    def chunks_stored(self, stored: str) -> Iterator[bytes]:
        """As `read_stored`, of a file of any size."""
        return self._opened(stored, self._store.chunks(stored, 0), 0)

    def size_stored(self, stored: str) -> int | None:
        """As `size`, of a file that was found by listing."""
        sealed = self._store.size(stored)
        return None if sealed is None else content_size(sealed)

    def size(self, name: str) -> int | None:
        """Of the content; -1 where what is there cannot be a sealed file."""
        return self.size_stored(self.stored(name))

    def names(self, folder: str) -> set[str]:
        """As they are stored."""
        return self._store.names(folder)

    def put(self, name: str, content: Content, heard: Heard) -> None:
        stored, salt = self.stored(name), os.urandom(SALT)
        sealed = Content(encrypted_size(content.size), lambda: self._sealed(stored, salt, content))
        if name.startswith(f"{layout.OBJECTS}/"):
            salt = self._cipher.salt_of(name)
            sealed = Content(sealed.size, lambda: self._sealed(stored, salt, _proven(content)))
        self._store.put(stored, sealed, heard)

    def create(self, name: str, data: bytes) -> bool:
        stored = self.stored(name)
        return self._store.create(stored, b"".join(self._sealed(stored, os.urandom(SALT), whole(data))))

    def close(self) -> None:
        self._store.close()

    def _sealed(self, stored: str, salt: bytes, content: Content) -> Iterator[bytes]:
        return self._cipher.encrypted(stored, salt, content.chunks())

    def _opened(self, stored: str, sealed: Iterator[bytes], first: int) -> Iterator[bytes]:
        """From piece `first` on; the header stands before it all the same."""
        try:
            yield from self._cipher.decrypted(stored, sealed, first)
        except Altered:
            raise _altered(stored) from None


def _proven(content: Content) -> Content:
    """Read once before anything is made of it: `chunks` raises where the bytes are not those of the name."""
    for _ in content.chunks():
        pass
    return content


def _altered(stored: str) -> Corrupt:
    return Corrupt(
        f"{stored[:40]} on the remote was altered, or cut off, or is another file",
        hint=f"it is not what this key encrypted; {AGAIN}",
    )
