"""A cipher: bytes of any length, encrypted in pieces of 1 MiB, so that nothing is believed before it was authenticated.

    "llmos-v1"  salt (32 bytes)  piece, piece, ..., last piece     each AES-256-GCM, with its tag of 16 bytes

The key of a file comes (HKDF-SHA256) from the user's, the salt of the place, the file's own salt and its name; the nonce of a
piece is its number and whether it is the last. So pieces cannot be dropped, added, reordered or moved between files, and
files cannot be exchanged for one another. One salt and one name must never be used for two contents.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator

from llmos_cli.errors import UsageError

NAME = "AES-256-GCM"
MAGIC = b"llmos-v1"
SALT = 32
PIECE = 1 << 20
TAG = 16
HEADER = len(MAGIC) + SALT


class Altered(Exception):
    """It is not what was encrypted with this key under this name."""


class Cipher:
    """`key` is the user's (32 bytes), `salt` the place's own (32 bytes), so that one key gives other bytes elsewhere."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        self._names = _derived(key, salt, b"llmos names")
        self._salts = _derived(key, salt, b"llmos salts")
        self._contents = _derived(key, salt, b"llmos contents")

    def mac(self, name: str) -> str:
        """What stands for a name where it must not be seen."""
        return hmac.new(self._names, name.encode(), hashlib.sha256).hexdigest()

    def check(self) -> str:
        """What is kept beside the salt, to tell a wrong key by."""
        return self.mac("check")

    def fits(self, check: str) -> bool:
        return hmac.compare_digest(self.check(), check)

    def salt_of(self, name: str) -> bytes:
        """A file's own salt, where its name is the hash of its content."""
        return hmac.digest(self._salts, name.encode(), "sha256")

    def encrypted(self, name: str, salt: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
        file = self._file(name, salt)
        yield MAGIC + salt
        for number, piece, last in _numbered(exactly(chunks, PIECE), 0):
            yield file.encrypt(_nonce(number, last), piece, None)

    def decrypted(self, name: str, chunks: Iterator[bytes], first: int = 0) -> Iterator[bytes]:
        """From piece `first` on; the header stands before it all the same."""
        from cryptography.exceptions import InvalidTag

        header, rest = _split(chunks, HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            raise Altered(name)
        file = self._file(name, header[len(MAGIC) :])
        for number, piece, last in _numbered(exactly(rest, PIECE + TAG), first):
            try:
                yield file.decrypt(_nonce(number, last), piece, None)
            except InvalidTag:
                raise Altered(name) from None

    def _file(self, name: str, salt: bytes):  # type: ignore[no-untyped-def]
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(_derived(self._contents, salt, b"llmos file " + name.encode()))


def encrypted_size(size: int) -> int:
    return HEADER + size + TAG * max(-(-size // PIECE), 1)


def content_size(encrypted: int) -> int:
    """-1 where nothing has that size when it is encrypted."""
    size = encrypted - HEADER - TAG * max(-(-(encrypted - HEADER) // (PIECE + TAG)), 1)
    return size if size >= 0 and encrypted_size(size) == encrypted else -1


def _derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    try:
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise UsageError("encryption needs the package cryptography", hint="pip install 'llmos-cli[remotes]'") from None
    return HKDF(SHA256(), 32, salt, purpose).derive(key)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


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


def exactly(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
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
    return head[:size], chained(head[size:], chunks)


def chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
