"""A vault: a store whose place sees neither names nor contents, because both are encrypted here.

Names become HMACs; what remains to be seen is how many files of each kind there are, how large they are, and when they came.
Contents are AES-256-GCM in pieces of 1 MiB, so that nothing is believed before it was authenticated, however large it is:

    "llmos-v1"  salt (32 bytes)  piece, piece, ..., last piece     each with its tag of 16 bytes

The key of a file comes (HKDF-SHA256) from the user's, its salt and its name; the nonce of a piece is its number and whether it
is the last. So pieces cannot be dropped, added, reordered or moved between files, and files cannot be exchanged for one
another. An object's salt comes from its name, which is the hash of its content: the same bytes are encrypted to the same
bytes, and an upload that was cut off can go on. That is safe only while one name means one content, so an object is hashed
before a byte of it is encrypted. All other salts are random.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator

from llmos_cli.core.remote import layout
from llmos_cli.core.remote.store import Content, Heard, Store, whole
from llmos_cli.errors import Corrupt, UsageError

MAGIC = b"llmos-v1"
SALT = 32
PIECE = 1 << 20
TAG = 16
_HEADER = len(MAGIC) + SALT


class Vault:
    """`key` is the user's (32 bytes), `salt` the remote's own, so that one key gives other names elsewhere."""

    def __init__(self, store: Store, key: bytes, salt: bytes) -> None:
        self.no_exclusive_create = store.no_exclusive_create
        self._store = store
        self._names = _derived(key, salt, b"llmos names")
        self._salts = _derived(key, salt, b"llmos salts")
        self._contents = _derived(key, salt, b"llmos contents")

    def check(self) -> str:
        """What the format file holds to tell a wrong key by."""
        return self._mac("check")

    def stored(self, name: str) -> str:
        """What a file is called there: `refs/HMAC/00000007`, `objects/HMAC`, the latter in 256 folders."""
        kind, _, rest = name.partition("/")
        if kind == layout.REFS:
            folder, _, number = rest.rpartition("/")
            return f"{kind}/{self._mac(f'{kind}/{folder}')}/{number}"
        hidden = self._mac(name)
        return f"{kind}/{hidden[:2]}/{hidden[2:]}" if kind == layout.OBJECTS else f"{kind}/{hidden}"

    def read(self, name: str, limit: int) -> bytes | None:
        return self.read_stored(self.stored(name), limit)

    def read_stored(self, stored: str, limit: int) -> bytes | None:
        """Of a file that was found by listing, whose name only its content tells."""
        sealed = self._store.read(stored, _sealed_size(limit))
        return None if sealed is None else b"".join(self._opened(stored, iter((sealed,)), 0))

    def chunks(self, name: str, start: int) -> Iterator[bytes]:
        stored = self.stored(name)
        first = start // PIECE
        if first == 0:
            sealed = self._store.chunks(stored, 0)
        else:
            header = next(iter(_exactly(self._store.chunks(stored, 0), _HEADER)), b"")
            sealed = _chained(header, self._store.chunks(stored, _HEADER + first * (PIECE + TAG)))
        for piece in self._opened(stored, sealed, first):
            yield piece[start - first * PIECE :] if start > first * PIECE else piece
            start = 0

    def size(self, name: str) -> int | None:
        """Of the content; -1 where what is there cannot be a sealed file."""
        sealed = self._store.size(self.stored(name))
        return None if sealed is None else _content_size(sealed)

    def names(self, folder: str) -> set[str]:
        """As they are stored."""
        return self._store.names(folder)

    def put(self, name: str, content: Content, heard: Heard) -> None:
        stored, salt = self.stored(name), os.urandom(SALT)
        sealed = Content(_sealed_size(content.size), lambda: self._sealed(stored, salt, content))
        if name.startswith(f"{layout.OBJECTS}/"):
            salt = hmac.digest(self._salts, name.encode(), "sha256")
            sealed = Content(sealed.size, lambda: self._sealed(stored, salt, _proven(content)))
        self._store.put(stored, sealed, heard)

    def create(self, name: str, data: bytes) -> bool:
        stored = self.stored(name)
        return self._store.create(stored, b"".join(self._sealed(stored, os.urandom(SALT), whole(data))))

    def close(self) -> None:
        self._store.close()

    def _mac(self, name: str) -> str:
        return hmac.new(self._names, name.encode(), hashlib.sha256).hexdigest()

    def _sealed(self, stored: str, salt: bytes, content: Content) -> Iterator[bytes]:
        cipher = self._cipher(stored, salt)
        yield MAGIC + salt
        for number, piece, last in _numbered(_exactly(content.chunks(), PIECE), 0):
            yield cipher.encrypt(_nonce(number, last), piece, None)

    def _opened(self, stored: str, sealed: Iterator[bytes], first: int) -> Iterator[bytes]:
        """From piece `first` on; the header stands before it all the same."""
        from cryptography.exceptions import InvalidTag

        header, rest = _split(sealed, _HEADER)
        if len(header) < _HEADER or not header.startswith(MAGIC):
            raise _altered(stored)
        cipher = self._cipher(stored, header[len(MAGIC) :])
        for number, piece, last in _numbered(_exactly(rest, PIECE + TAG), first):
            try:
                yield cipher.decrypt(_nonce(number, last), piece, None)
            except InvalidTag:
                raise _altered(stored) from None

    def _cipher(self, stored: str, salt: bytes):  # type: ignore[no-untyped-def]
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(_derived(self._contents, salt, b"llmos file " + stored.encode()))


def _derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise UsageError(
            "an encrypted remote needs the package cryptography", hint="pip install 'llmos-cli[remotes]'"
        ) from None
    return HKDF(SHA256(), 32, salt, purpose).derive(key)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _proven(content: Content) -> Content:
    """Read once before anything is made of it: `chunks` raises where the bytes are not those of the name."""
    for _ in content.chunks():
        pass
    return content


def _numbered(pieces: Iterable[bytes], first: int) -> Iterator[tuple[int, bytes, bool]]:
    """With their numbers and whether they are the last; nothing at all is one empty piece."""
    before: bytes | None = None
    number = first
    for piece in pieces:
        if before is not None:
            yield number, before, False
            number += 1
        before = piece
    yield number, before or b"", True


def _exactly(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of `size`, the last one shorter."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= size:
            yield bytes(waiting[:size])
            del waiting[:size]
    if waiting:
        yield bytes(waiting)


def _split(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return head[:size], _chained(head[size:], chunks)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _sealed_size(size: int) -> int:
    return _HEADER + size + TAG * max(-(-size // PIECE), 1)


def _content_size(sealed: int) -> int:
    size = sealed - _HEADER - TAG * max(-(-(sealed - _HEADER) // (PIECE + TAG)), 1)
    return size if size >= 0 and _sealed_size(size) == sealed else -1


def _altered(stored: str) -> Corrupt:
    return Corrupt(
        f"{stored[:40]} on the remote was altered, or cut off, or is another file",
        hint="it is not what this key encrypted; push again from a workspace that has it, after removing it there",
    )
