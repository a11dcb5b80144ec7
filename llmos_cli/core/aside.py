"""What was damaged and is kept: a log that is begun anew stays, as it was found, in `.llmos/aside/` under its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_bytes
from llmos_cli.core.refs import ID
from llmos_cli.errors import NotPlain

FOLDER = "aside"


def keep(dot: Path, path: Path) -> str:
    """A copy of what is there now, synced, whatever becomes of the file; nothing there is kept as nothing."""
    text = read_bytes(path) if path.exists() else b""
    digest = hashlib.sha256(text).hexdigest()
    if read(dot, digest) is None:
        atomic.write_bytes(dot / FOLDER / digest, text, scratch=dot / "tmp")
    return digest


def read(dot: Path, digest: str) -> bytes | None:
    """None where it is not there, or not what was set aside."""
    try:
        text = read_bytes(dot / FOLDER / digest) if ID.fullmatch(digest) else b""
    except (FileNotFoundError, NotPlain):
        return None
    return text if hashlib.sha256(text).hexdigest() == digest else None
