"""The standard library's source files: the text that every Python brings along.

Left out: `pydoc_data` (a data set of its own), the test suites, generated or machine-specific files, and whatever
was installed beside. A distribution's patches show in the fingerprint.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

OUTSIDE = {"pydoc_data", "test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}


def files() -> Iterator[tuple[str, str]]:
    """(path below the library's folder with forward slashes, text) of each source file, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in root.rglob("*.py"))
    for path in paths:
        if _belongs(path):
            text = _text(root / path)
            if text:
                yield str(path), text


def identity(sources: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of these files, paths and all: what is derived from them is kept under it."""
    hasher = hashlib.sha256()
    for path, text in sources:
        content = text.encode()
        hasher.update(f"{path}:{len(content)}:".encode())
        hasher.update(content)
    return hasher.hexdigest()


def _belongs(path: PurePosixPath) -> bool:
    first, name = path.parts[0], path.name
    return not (OUTSIDE & set(path.parts[:-1]) or first.startswith("config-") or name.startswith("_sysconfigdata"))


def _text(path: Path) -> str:
    """The file's text, empty where it is not UTF-8 (a few files declare another encoding)."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""
