"""Which checkpoints are without their weights: a file `.llmos/dropped/<id>` each, empty where an operation removed them, written before
they go; `BARE` where they came from a remote without.

The manifest stays, so that the line of ancestors stays whole. Files that are still beside it count for nothing: `rm` leaves
them, for its mark to be undone, until `gc` finds that the operation log's window has passed over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core.listing import entries, is_file, is_plain, read_bytes
from llmos_cli.core.refs import ID

FOLDER = ".llmos/dropped/"
BARE = b"bare\n"


def mark_of(checkpoint: str) -> str:
    """What an operation that removes its weights changes: from nothing to an empty file."""
    return FOLDER + checkpoint


class Dropped:
    def __init__(self, dot: Path) -> None:
        self._directory = dot / "dropped"
        self._scratch = dot / "tmp"

    def __contains__(self, checkpoint: str) -> bool:
        return is_plain(self._directory / checkpoint)

    def all(self) -> set[str]:
        return {each.name for each in entries(self._directory) if _is_mark(each)}

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among the marks and is none."""
        return (each for each in entries(self._directory) if not _is_mark(each))

    def written(self, checkpoint: str) -> float:
        """When its mark was, in seconds since the epoch; 0 where there is none (any more)."""
        try:
            return (self._directory / checkpoint).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def mark(self, checkpoint: str) -> None:
        """From now on its weights are gone for everybody, whatever is still on disk."""
        from llmos_cli.core import atomic  # here: `log` asks what was dropped and drops nothing

        if checkpoint not in self:
            atomic.write_bytes(self._directory / checkpoint, b"", scratch=self._scratch)

    def mark_bare(self, checkpoint: str) -> None:
        """It is about to come without its weights, by no operation."""
        from llmos_cli.core import atomic

        atomic.write_bytes(self._directory / checkpoint, BARE, scratch=self._scratch)

    def is_bare(self, checkpoint: str) -> bool:
        """Whether it came without; its weights may be coming, and be here already when that is cut off."""
        try:
            return read_bytes(self._directory / checkpoint) == BARE
        except FileNotFoundError:
            return False

    def senseless(self) -> list[str]:
        """Those whose mark says neither."""
        return [each for each in sorted(self.all()) if read_bytes(self._directory / each) not in (b"", BARE)]

    def put_right(self, checkpoint: str, *, bare: bool) -> None:
        """A mark that says neither gets the words that it had."""
        from llmos_cli.core import atomic

        atomic.write_bytes(self._directory / checkpoint, BARE if bare else b"", scratch=self._scratch)

    def drop(self, directory: Path) -> None:
        """Remove all files of a marked checkpoint but its manifest. A crash in between is finished by dropping it again."""
        from llmos_cli.core import atomic, manifest
        from llmos_cli.core.objects import files_below

        if not directory.is_dir() or directory.is_symlink():
            return  # collected since; what a link leads to is not ours
        with atomic.refusals(directory):
            for name in files_below(directory):
                if name != manifest.NAME:
                    (directory / name).unlink(missing_ok=True)
            for folder in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            atomic.sync_directory(directory)

    def whole(self, root: Path, checkpoint: str) -> bool:
        """Whether its files are all still there, or it has its weights anyway: then taking the mark away is all there is to do."""
        from llmos_cli.core import manifest

        directory = root / "checkpoints" / checkpoint
        if not directory.is_dir():
            return False
        tree = manifest.read(directory).tree
        return all((path := directory / name).is_file() and path.stat().st_size == tree[name].size for name in tree)

    def restore(self, checkpoint: str) -> None:
        from llmos_cli.core import atomic

        atomic.remove(self._directory / checkpoint)


def _is_mark(entry: os.DirEntry[str]) -> bool:
    return ID.fullmatch(entry.name) is not None and is_file(entry)
