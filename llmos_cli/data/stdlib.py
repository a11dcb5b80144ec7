"""The standard library's source files: the text that every Python brings along.

Left out: `pydoc_data` (a data set of its own), the test suites, generated or machine-specific files, and whatever
was installed beside. A distribution's patches show in the fingerprint.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

OUTSIDE = {"pydoc_data", "test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}


def files() -> Iterator[tuple[str, str]]:
    """(path below the library's folder with forward slashes, text) of each source file, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_sources(root)):
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


def _sources(root: Path) -> Iterator[PurePosixPath]:
    """Folders that do not belong are not entered: what is installed beside is often the larger part of the tree."""
    for folder, inside, names in os.walk(root):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        inside[:] = [name for name in inside if name not in OUTSIDE and not (folder == str(root) and _configured(name))]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                yield here / name


def _configured(folder: str) -> bool:
    """Whether it holds what the build of this Python was configured with."""
    return folder.startswith("config-")


def _text(path: Path) -> str:
    """The file's text, empty where it is not UTF-8 (a few files declare another encoding)."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""
