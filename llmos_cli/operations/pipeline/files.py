"""Files that stages read and write, as hashes: each file hashed once as long as its size, times and inode stay what they were."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmos_cli.core import atomic, urls
from llmos_cli.core.listing import read_text
from llmos_cli.core.objects import files_below, hash_file
from llmos_cli.errors import UNREADABLE, LlmosError, NotFound

Tree = dict[str, str]
"""Path, relative to the workspace where it lies there -> SHA-256; of an executable file with `+x` after it."""

_SETTLED = 2.0
"""A file changed less than this many seconds ago may change again within one tick of its clock: it is hashed again."""


class Hashes:
    """`path`: where what was hashed is remembered; a file that is not there, or not ours, is an empty memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[int | str]] = _read(path)
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        status = path.stat()
        # What is put in its place with its old time (`cp -p`, archives) still changes it at another time.
        stamp: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        *known, sha256 = self._known.get(str(path), [""])
        if known == stamp:
            return str(sha256)
        sha256 = hash_file(path).sha256
        if time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED:
            with self._lock:
                self._known[str(path)] = [*stamp, sha256]
        return sha256

    def save(self) -> None:
        """What cannot be kept is hashed again the next time."""
        with self._lock:
            kept = {path: known for path, known in self._known.items() if os.path.lexists(path)}
        with contextlib.suppress(LlmosError):
            atomic.write_text(self._path, json.dumps(kept))


def _read(path: Path) -> dict[str, list[int | str]]:
    try:
        found = json.loads(read_text(path))
    except (FileNotFoundError, *UNREADABLE):
        return {}
    return (
        {path: known for path, known in found.items() if isinstance(known, list) and known}
        if isinstance(found, dict)
        else {}
    )


def tree(root: Path, names: Iterable[str], hashes: Hashes) -> Tree:
    """Of files and of folders with all that is in them; NotFound where one is not there."""
    found: Tree = {}
    for name in names:
        path = root / urls.path(name)
        if not path.exists():
            raise NotFound(f"there is no {name}", hint="paths of a stage are relative to the workspace's folder")
        for file in _files(path):
            found[relative(root, file)] = hashes.of(file) + ("+x" if os.access(file, os.X_OK) else "")
    return dict(sorted(found.items()))


def relative(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (path / name for name in files_below(path) if (path / name).is_file())
    else:
        yield path
