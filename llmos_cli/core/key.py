"""The key of what is encrypted: 64 hexadecimal digits, in LLMOS_KEY or in a file of the user's, never in the workspace."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.errors import Untrusted

VARIABLE = "LLMOS_KEY"
_KEY = re.compile(r"[0-9a-fA-F]{64}")


def read_key(file: Path | None, what: str) -> bytes:
    """LLMOS_KEY where it is set, else the file's. `what` is encrypted with it; Untrusted where there is none."""
    if (text := os.environ.get(VARIABLE)) is not None:
        return _parsed(text, VARIABLE)
    if file is None:
        raise Untrusted(f"{what} is encrypted, and {VARIABLE} is not set", hint=f"{VARIABLE}=$(cat KEYFILE) llmos ...")
    try:
        return _parsed(file.read_text(encoding="ascii", errors="replace"), str(file))
    except OSError as error:
        raise Untrusted(
            f"the key of {what} cannot be read from {file}: {error.strerror}", hint=f"put it there, or into {VARIABLE}"
        ) from None


def make_key(file: Path) -> None:
    """A new one, for its owner's eyes only."""
    with atomic.refusals(file):
        atomic.make_directory(file.parent)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            atomic.write_all(descriptor, os.urandom(32).hex().encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        atomic.sync_directory(file.parent)


def _parsed(text: str, where: str) -> bytes:
    if not _KEY.fullmatch(text.strip()):
        raise Untrusted(f"{where} holds no key: 64 hexadecimal digits", hint="`openssl rand -hex 32` makes one")
    return bytes.fromhex(text.strip())
