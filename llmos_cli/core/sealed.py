"""Sealed checkpoints: their files stand encrypted in `.llmos/sealed/`, and in their own folders the manifests alone.

    <id>.json    its seal (`seal.py`): while that is there it is sealed, whatever lies beside its manifest
    aa/bb...     an encrypted file, under the SHA-256 of what it is now
    waiting/     what is about to be sealed or opened

To seal: encrypted files are synced, the seal appears, the open files go. To open: the open files come, the seal goes, then the
encrypted files. What waits is nobody's unless an operation is pending, or the process that decrypts lives.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.hashed import is_part, place, stored, strange
from llmos_cli.core.listing import entries, is_file, read_bytes
from llmos_cli.core.processes import is_abandoned, scratch_name
from llmos_cli.core.refs import ID
from llmos_cli.errors import Corrupt

# What `status` and `log` do without is imported where it is used: they ask what is sealed, and seal nothing.
if TYPE_CHECKING:
    from llmos_cli.core.seal import Seal

FOLDER = "sealed"
TEACHERS, TOKENIZERS = "teachers", "tokenizers"
"""Of the cache: what teachers said, and the tokenizers that checkpoints have too. They go when a checkpoint is sealed."""
OUTPUTS = "pipeline/objects"
"""Of `.llmos/`: contents of files that a pipeline's commands wrote; a checkpoint's own may be among them."""
_SUFFIX = ".json"
_FETCHED = "fetch"


class Sealed:
    def __init__(self, root: Path, dot: Path) -> None:
        self._checkpoints = root / "checkpoints"
        self._dot = dot
        self.directory = dot / FOLDER
        self.waiting = self.directory / "waiting"

    def __contains__(self, checkpoint: str) -> bool:
        return self._record(checkpoint).exists()

    def all(self) -> set[str]:
        return {each.name.removesuffix(_SUFFIX) for each in entries(self.directory) if _is_seal(each)}

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among seals and encrypted files and is neither."""
        ours = (_is_seal, is_part, lambda each: each.name == self.waiting.name)
        yield from (each for each in entries(self.directory) if not any(is_ours(each) for is_ours in ours))
        yield from strange(self.directory)

    def seal(self, checkpoint: str) -> Seal:
        """Corrupt where it makes no sense."""
        return self._read(self._record(checkpoint), checkpoint)

    def unreadable(self) -> set[str]:
        """Those whose seals make no sense."""
        return {each for each in self.all() if self._senseless(each)}

    def sizes(self, checkpoint: str) -> dict[str, int]:
        """SHA-256 -> bytes of its encrypted files; none where its seal makes no sense, which `fsck` tells."""
        if self._senseless(checkpoint):
            return {}
        return {entry.sha256: entry.size for entry in self.seal(checkpoint).tree.values()}

    def path(self, sha256: str) -> Path:
        return self.directory / place(sha256)

    def names(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every encrypted file: its SHA-256 and its directory entry."""
        return stored(self.directory)

    def named(self, without: Iterable[str] = ()) -> Counter[str]:
        """SHA-256 -> in how many seals, but for those `without`, an encrypted file is; Corrupt where one cannot be read."""
        return Counter(sha256 for each in self.all() - set(without) for sha256 in _files(self.seal(each)))

    def unnamed(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Encrypted files that no seal names; none where a seal cannot be read, for it may name any of them, unless what it is of was
        removed: nobody could open that again."""
        from llmos_cli.core.dropped import Dropped

        try:
            named = self.named(without=self.unreadable() & Dropped(self._dot).all())
        except Corrupt:
            return
        yield from ((sha256, entry) for sha256, entry in self.names() if sha256 not in named)

    def waits(self) -> bool:
        """Whether something is being decrypted, or was when its process was killed."""
        return bool(entries(self.waiting))

    # What follows is done under the lock of the refs

    def keep(self, folder: Path, sha256s: Iterable[str]) -> None:
        """Encrypted files, finished and synced in `folder` under their hashes, get their places; those that are there stay."""
        from llmos_cli.core import atomic

        for sha256 in sorted(set(sha256s)):
            if not (target := self.path(sha256)).exists():
                with atomic.refusals(target):
                    atomic.make_directory(target.parent)
                    (folder / sha256).replace(target)
                    atomic.sync_directory(target.parent)

    def lacks(self, seal: Seal) -> bool:
        return any(not self.path(sha256).exists() for sha256 in _files(seal))

    def expect(self, seal: Seal) -> None:
        """It waits for the operation that makes it count."""
        from llmos_cli.core import atomic

        atomic.write_text(self._waiting(seal.checkpoint), seal.text(), scratch=self._dot / "tmp")

    def change(self, seal: Seal) -> None:
        """Of what is sealed, and stays so: the encrypted files that it names are in their places."""
        from llmos_cli.core import atomic

        atomic.write_text(self._record(seal.checkpoint), seal.text(), scratch=self._dot / "tmp")

    def close(self, checkpoint: str) -> None:
        """From now on it is sealed for everybody."""
        self._move(self._waiting(checkpoint), self._record(checkpoint))

    def reopen(self, checkpoint: str) -> None:
        """Take that back, while its open files are all there."""
        self._move(self._record(checkpoint), self._waiting(checkpoint))

    def clear(self, checkpoint: str) -> None:
        """What is left of a sealed checkpoint in the clear goes: its files, their further names, what was made of it."""
        from llmos_cli.core import atomic, manifest
        from llmos_cli.core.dropped import Dropped
        from llmos_cli.core.objects import Objects
        from llmos_cli.core.staging import discard

        directory = self._checkpoints / checkpoint
        if not directory.is_dir():
            return
        contents = {entry.sha256 for entry in manifest.read(directory).tree.values()}
        Dropped(self._dot).drop(directory)
        with atomic.refusals(directory):
            Objects(self._dot).remove(contents)
            for each in contents:
                for left in (each, f"{each}.part"):
                    (self._dot / "tmp" / _FETCHED / left).unlink(missing_ok=True)
                (self._dot / OUTPUTS / each).unlink(missing_ok=True)
        for kind in (TEACHERS, TOKENIZERS):
            discard(self._dot / "cache" / kind)

    @contextlib.contextmanager
    def opening(self) -> Iterator[Path]:
        """An empty folder for what is being decrypted: gone afterwards, or once the process is dead and another looks."""
        from llmos_cli.core import atomic
        from llmos_cli.core.staging import discard

        folder = self.waiting / scratch_name("opening")
        with atomic.refusals(folder):
            atomic.make_directory(folder)
        try:
            yield folder
        finally:
            discard(folder)

    def offer(self, checkpoint: str, folder: Path) -> None:
        """Its open files, whole and synced, wait for the operation that opens it."""
        from llmos_cli.core import atomic

        with atomic.refusals(folder):
            for inner, _, _ in os.walk(folder):
                atomic.sync_directory(Path(inner))
            folder.rename(self.waiting / checkpoint)
            atomic.sync_directory(self.waiting)

    def open(self, checkpoint: str) -> None:
        """From now on it is open for everybody. What was moved before a crash is not moved again."""
        from llmos_cli.core import atomic
        from llmos_cli.core.objects import files_below

        source, target = self.waiting / checkpoint, self._checkpoints / checkpoint
        with atomic.refusals(target):
            for name in files_below(source) if source.is_dir() else ():
                atomic.make_directory((target / name).parent)
                (source / name).replace(target / name)
                atomic.sync_directory((target / name).parent)
                atomic.sync_directory((source / name).parent)
        self._move(self._record(checkpoint), self._waiting(checkpoint))

    def shut(self, checkpoint: str) -> None:
        """Take that back, while its encrypted files are all there."""
        self._move(self._waiting(checkpoint), self._record(checkpoint))
        self.clear(checkpoint)

    def forget(self, checkpoints: Iterable[str]) -> None:
        """Encrypted files that only these name go, then their seals. Idempotent."""
        from llmos_cli.core import atomic

        gone = [path for each in checkpoints for path in (self._record(each), self._waiting(each)) if path.exists()]
        for sha256 in self._own(gone):
            atomic.remove(self.path(sha256))
        for path in gone:
            atomic.remove(path)
        self.tidy()

    def tidy(self) -> None:
        """Remove what waits for nothing: its process was killed."""
        if not self.waits():
            return
        from llmos_cli.core import atomic
        from llmos_cli.core.staging import discard

        for path in self.waiting.iterdir():
            if ID.fullmatch(path.name.removesuffix(_SUFFIX)) or is_abandoned(path.name):
                discard(path)
        atomic.sync_directory(self.waiting)

    def _senseless(self, checkpoint: str) -> bool:
        try:
            self.seal(checkpoint)
        except Corrupt:
            return True
        return False

    def _own(self, records: Iterable[Path]) -> set[str]:
        """What only these seals name; nothing where one of all cannot be read: `gc` looks again when it can."""
        ids = {path.name.removesuffix(_SUFFIX) for path in records}
        try:
            others = self.named(without=ids)
            return {sha256 for path in records for sha256 in _files(self._read(path, path.stem))} - others.keys()
        except Corrupt:
            return set()

    def _read(self, path: Path, checkpoint: str) -> Seal:
        from llmos_cli.core.seal import parse

        return parse(read_bytes(path), checkpoint)

    def _record(self, checkpoint: str) -> Path:
        return self.directory / f"{checkpoint}{_SUFFIX}"

    def _waiting(self, checkpoint: str) -> Path:
        return self.waiting / f"{checkpoint}{_SUFFIX}"

    def _move(self, source: Path, target: Path) -> None:
        from llmos_cli.core import atomic

        if source.exists():
            with atomic.refusals(target):
                atomic.make_directory(target.parent)
                source.rename(target)
                atomic.sync_directory(target.parent)
                atomic.sync_directory(source.parent)


def _is_seal(entry: os.DirEntry[str]) -> bool:
    return (
        entry.name.endswith(_SUFFIX) and ID.fullmatch(entry.name.removesuffix(_SUFFIX)) is not None and is_file(entry)
    )


def _files(seal: Seal) -> set[str]:
    return {entry.sha256 for entry in seal.tree.values()}
