"""What a power cut could take: read off the calls of a command that ended well.

Each promise of `core/atomic.py` is a question to the trace: was a file's content synced before it got its final name, was
its folder synced before anything else was built on it, and is nothing left unsynced at the end?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.core.tracing import Call

_CACHE = re.compile(
    r"\.llmos/(tmp|locks|cache|index\.sqlite[^/]*|sealed/waiting/opening[^/]*|pipeline/logs)(/|$)|/\.exporting_[^/]*(/|$)|/uploads(/|$)|/log\.txt$|/state(/|$)|\.lock$|/\.file_[^/]*$"
)
"""May be lost: unfinished things, who holds a lock, what is made anew from the files, a run's story told a second time."""
_SHARED = re.compile(r"/objects(/|$)|/far/runs(/|$)|/runs/[^/]+/events\.jsonl$")
"""Stored several at once, before anything names them, or if nothing does; and what a run tells as it goes."""
_RECORDS = re.compile(r"/audit\.jsonl$")
"""A record that the head of the audit does not know yet is missed by nobody."""
_SPARE = re.compile(r"\.llmos/(snapshots/)?objects(/|$)")
"""Lost or back again, an object hurts nobody: but what it holds must be right."""

_UNSEEN = re.compile(r"/\.[^/]+\.restoring/")
"""A workspace that is being restored: all of it is brought again until it appears, and must be synced by then."""


def unsafe(calls: Iterable[Call], root: Path, before: Path) -> list[str]:
    """What each call did too early, and what was never synced, in words. `before`: a copy of `root` from before the calls."""
    disk = _Disk(root, {str(root / path.relative_to(before)) for path in before.rglob("*")})
    found = [f"{call}: {what}" for call in calls if not call.failed for what in disk.after(call)]
    return found + [f"never synced: {path}" for path in sorted(disk.unsynced()) if not _SPARE.search(path)]


class _Disk:
    """Files whose bytes and folders whose names are not on the disk yet."""

    def __init__(self, root: Path, there: set[str]) -> None:
        self._root = str(root)
        self._there = there
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._heads: set[str] = set()
        """Folders in which the audit's head has a new content that a power cut may take."""

    def unsynced(self, below: str = "") -> set[str]:
        below = below or self._root
        found = {path for path in self._files | self._folders if path == below or path.startswith(f"{below}/")}
        return found if _CACHE.search(below) else {path for path in found if not _CACHE.search(path)}

    def after(self, call: Call) -> Iterator[str]:
        match call.name, call.paths:
            case "open" | "openat", (path,):
                if "O_TRUNC" in call.arguments and path in self._there and not _CACHE.search(path):
                    yield "overwrites a file in place"
                if path not in self._there:
                    self._entry(path)
                self._there.add(path)
            case "write" | "pwrite64" | "writev" | "ftruncate" | "ioctl" | "fallocate", (path, *_):
                if _RECORDS.search(path) and path.rpartition("/")[0] in self._heads:
                    yield "the head of the audit would be two records behind: it is not synced yet"
                self._files.add(path)
            case "sendfile", (target, _):
                self._files.add(target)
            case "copy_file_range", (_, target):
                self._files.add(target)
            case "fsync" | "fdatasync", (path,):
                self._files.discard(path)
                self._folders.discard(path)
                self._heads.discard(path)
            case "rename" | "renameat" | "renameat2" | "link" | "linkat", (source, target):
                yield from self._named(source, target)
                if call.name.startswith("rename"):
                    self._moved(source, target)
                self._entry(target)
                if target.endswith("/audit.head"):
                    self._heads.add(target.rpartition("/")[0])
            case "mkdir" | "mkdirat", (path,):
                self._entry(path)
            case "unlink" | "unlinkat" | "rmdir", (path,):
                if path.endswith("pending.json"):
                    yield from (f"{each} is not synced yet" for each in self.unsynced() - self._apart())
                self._files.discard(path)
                self._folders.discard(path)
                self._entry(path)

    def _named(self, source: str, target: str) -> Iterator[str]:
        if _CACHE.search(target) or _UNSEEN.search(target):
            return
        yield from (f"{each} is not synced yet" for each in self.unsynced(source))
        if target.endswith("/audit.head"):
            yield from (f"{each} is not synced yet" for each in self.unsynced() if _RECORDS.search(each))
        if not _SHARED.search(target):
            yield from (f"{each} is not synced yet" for each in self.unsynced() - self._apart())

    def _apart(self) -> set[str]:
        return {path for path in self._folders | self._files if _SHARED.search(path) or _RECORDS.search(path)}

    def _moved(self, source: str, target: str) -> None:
        for known in (self._files, self._folders, self._there):
            for path in [each for each in known if each == source or each.startswith(f"{source}/")]:
                known.remove(path)
                known.add(target + path.removeprefix(source))
        self._entry(source)

    def _entry(self, path: str) -> None:
        """A name came or went."""
        folder = path.rpartition("/")[0]
        if not _CACHE.search(path) or _CACHE.search(folder):
            self._folders.add(folder)
