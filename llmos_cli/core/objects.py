"""The object store: equal files of different checkpoints share their bytes on disk.

`.llmos/objects/aa/bbbb...` holds one file per content, named by its SHA-256. A checkpoint's own files share an object's
extents (reflink) or its inode (hard link). Where the file system can do neither, nothing is shared and nothing is
stored here: each checkpoint has its own copy. So the store only ever saves space: a checkpoint is whole without it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llmos_cli.core import storage
from llmos_cli.core.atomic import make_directory, read_only, refusals, sync_directory, sync_file, write_text
from llmos_cli.core.hashed import is_part, place, stored, strange
from llmos_cli.core.listing import entries, plainly, through_links
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.processes import scratch_name
from llmos_cli.core.storage import Mode
from llmos_cli.core.view import size
from llmos_cli.errors import LlmosError
from llmos_cli.events import Emit, Note, ignore

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), <linux/fs.h>
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EMLINK}


def hash_file(path: Path) -> FileEntry:
    with open(path, "rb", opener=through_links) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, os.fstat(file.fileno()).st_size)


def hash_files(paths: Iterable[Path]) -> dict[Path, FileEntry]:
    """Hash several files at once: hashlib lets go of the interpreter lock."""
    from concurrent.futures import ThreadPoolExecutor  # here: `status` and `log` hash nothing and start faster

    listed = list(paths)
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        return dict(zip(listed, pool.map(hash_file, listed), strict=True))


def cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def files_below(directory: Path) -> list[str]:
    """Names, relative and with `/`, of all files in a directory tree, sorted."""
    return sorted(_walk(str(directory), ""))


def _walk(directory: str, prefix: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


_DENIED = "another user of this workspace has them, and this system links nobody's files but one's own (fs.protected_hardlinks)"


class _Adopted(NamedTuple):
    """`stored`: bytes of a file that are new on this disk; `denied`: they would not be if the system let us link another's."""

    stored: int
    denied: bool = False


class Objects:
    def __init__(self, dot: Path) -> None:
        self.directory = dot / "objects"
        self._scratch = dot / "tmp"
        self._dot = dot

    def path(self, sha256: str) -> Path:
        return self.directory / place(sha256)

    def adopt(
        self, directory: Path, tree: Mapping[str, FileEntry], shared: Container[str] = (), *, emit: Emit = ignore
    ) -> int:
        """Make the files of a staged directory share their bytes with equal ones stored before; those `shared` are such already.

        Afterwards all of them are read-only and synced. Returns the bytes that are new on this disk.
        """
        mode = self.probe()
        with refusals(self.directory):
            if mode == "reflink":  # a name in the parent's inode becomes one that shares its extents alone
                for name in (name for name in tree if name in shared):
                    _replace(directory / name, self._duplicate(directory / name, mode))
            own = {name: entry for name, entry in tree.items() if name not in shared}
            adopted = [self._adopt_file(directory / name, entry, mode) for name, entry in own.items()]
            self._sync(tree.values())
        if denied := sum(each.stored for each in adopted if each.denied):
            emit(Note(f"{size(denied)} are stored once more: {_DENIED}", "warning"))
        return sum(each.stored for each in adopted)

    def _adopt_file(self, staged: Path, entry: FileEntry, mode: Mode) -> _Adopted:
        if not stat.S_ISREG(staged.lstat().st_mode):
            raise LlmosError(
                f"a checkpoint holds plain files only, and {staged.name} is something else",
                hint="copy what it points to in its place",
            )
        read_only(staged)
        sync_file(staged)
        if mode == "copy":
            return _Adopted(entry.size)
        stored = self.path(entry.sha256)
        # `gc` may take an object away at any moment: then this file is stored anew.
        with contextlib.suppress(FileNotFoundError):
            # Compared byte for byte, so that an object damaged on disk is never spread to a checkpoint whose bytes are good.
            if _same_bytes(stored, staged):
                try:
                    _replace(staged, self._duplicate(stored, mode))
                    return _Adopted(0)
                except PermissionError:  # it is another user's, and may be read and not linked
                    return _Adopted(entry.size, denied=True)
                except OSError as error:
                    if error.errno != errno.EMLINK:  # it has all the names that a file may have: ours takes its place
                        raise
        make_directory(stored.parent)
        _replace(stored, self._duplicate(staged, mode))
        return _Adopted(entry.size)

    def share_again(self, files: Iterable[tuple[Path, FileEntry]]) -> set[Path]:
        """Make files that checkpoints have share their bytes with their objects, as `adopt` does. Returns those that do now; to
        link the others was denied, or they are gone."""
        mode = self.probe()
        if mode == "copy":
            return set()
        with refusals(self.directory):
            shared = {path: entry for path, entry in files if self._shares_again(path, entry, mode)}
            self._sync(shared.values())
        return set(shared)

    def _shares_again(self, file: Path, entry: FileEntry, mode: Mode) -> bool:
        try:
            return not self._adopt_file(file, entry, mode).denied
        except (PermissionError, FileNotFoundError):
            return False

    def _duplicate(self, source: Path, mode: Mode) -> Path:
        """A second name in the scratch folder for the bytes of `source`."""
        copy = self._scratch / scratch_name("object")
        if mode == "hardlink":
            os.link(source, copy)
        else:
            _reflink(source, copy)
            read_only(copy)
            sync_file(copy)
        return copy

    def _sync(self, entries: Iterable[FileEntry]) -> None:
        for folder in {self.path(entry.sha256).parent for entry in entries}:
            if folder.exists():
                sync_directory(folder)

    def probe(self) -> Mode:
        """Try what this file system can do, each time: the workspace may have been moved to another."""
        first, second = self._scratch / scratch_name("probe"), self._scratch / scratch_name("probe")
        write_text(first, "probe", scratch=self._scratch)
        try:
            mode = best_mode(first, second)
        finally:
            first.unlink(missing_ok=True)
            second.unlink(missing_ok=True)
        storage.write(self._dot, mode)
        return mode

    def remove(self, names: Iterable[str]) -> None:
        """Safe at any time: checkpoints keep their files, which only share less with those that are yet to come."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def names(self, besides: Container[str] = ()) -> set[str]:
        """The SHA-256 of every stored object, but of those `besides`."""
        return {sha256 for sha256, _ in stored(self.directory, besides)}

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among the objects and is none."""
        yield from (each for each in entries(self.directory) if not is_part(each))
        yield from strange(self.directory)


def may_link(file: os.stat_result) -> bool:
    """Whether this user may give a read-only file another name: to some systems it must be their own."""
    return os.geteuid() in (0, file.st_uid) or not (file.st_mode & 0o222 or _links_are_protected())


def _links_are_protected() -> bool:
    try:
        return Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "0"
    except OSError:  # another system, or one that does not say
        return False


def share(source: Path, target: Path) -> None:
    """A second name for a file that nobody writes to any more; a copy where the file system gives none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        shutil.copyfile(source, target)


def best_mode(first: Path, second: Path) -> Mode:
    try:
        _reflink(first, second)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    else:
        return "reflink"
    second.unlink(missing_ok=True)
    try:
        os.link(first, second)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return "copy"
    return "hardlink"


def _reflink(source: Path, target: Path) -> None:
    """Clone: another inode that shares the extents until one of the two is written (btrfs, XFS, bcachefs, ...)."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "no FICLONE here")
    with open(source, "rb") as origin, open(target, "xb") as clone:
        fcntl.ioctl(clone.fileno(), _FICLONE, origin.fileno())


def _replace(target: Path, source: Path) -> None:
    """Rename, minding that rename(2) does nothing where both are already one inode."""
    try:
        source.replace(target)
    finally:
        source.unlink(missing_ok=True)


def _same_bytes(one: Path, other: Path) -> bool:
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb", opener=plainly) as first, open(other, "rb", opener=plainly) as second:
        while chunk := first.read(1 << 20):
            if chunk != second.read(1 << 20):
                return False
    return True
