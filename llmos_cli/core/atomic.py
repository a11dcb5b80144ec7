"""Disk writes: whole or not at all.

Everything is written beside its place under another name, fsynced, renamed into place, and the directory fsynced too:
a reader, a kill or a power cut sees the old file or the new one. A write that the system refuses becomes one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core.listing import plainly
from llmos_cli.core.processes import scratch_name
from llmos_cli.errors import LlmosError

_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "free some space (`llmos gc --dry-run` lists what could go) and try again"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space (`llmos gc --dry-run` lists what could go) and try again",
    ),
    errno.EROFS: ("the file system is read-only", "copy the workspace to a place you can write"),
    errno.EACCES: ("permission denied", "the workspace must be writable by you"),
    errno.EPERM: ("operation not permitted", "the workspace must be writable by you"),
    errno.EIO: ("the disk reports an error", "save what you can: the disk may be failing (`dmesg` says more)"),
    errno.EFBIG: ("the file would be larger than this process may write", "`ulimit -f` says how large it may be"),
}
_TOLD = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) tell an errno: their exceptions are not OSErrors."""
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""How numpy tells that not all was written; it loses why, and that there is no room left is all but the only reason."""


def write_text(path: Path, text: str, *, scratch: Path | None = None) -> None:
    write_bytes(path, text.encode(), scratch=scratch)


def write_bytes(path: Path, data: bytes, *, scratch: Path | None = None) -> None:
    """Replace the content of `path`, making its folder when missing.

    `scratch` is the folder (of the same file system) for the unfinished file; beside `path` when absent.
    """
    with refusals(path):
        make_directory(path.parent)
        make_directory(scratch or path.parent)
        unfinished = (scratch or path.parent) / scratch_name(".file")
        try:
            _write_synced(unfinished, data)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` may write less than it was given (a nearly full disk); the next call then says why."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def publish(directory: Path, final: Path) -> bool:
    """Rename a finished directory to its final name. False: `final` exists already, and `directory` is left alone."""
    with refusals(final):
        sync_folders(directory)
        make_directory(final.parent)
        try:
            directory.rename(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        sync_directory(final.parent)
        return True


def remove(path: Path) -> None:
    """Remove a file for good; one that is not there is fine."""
    with refusals(path):
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Make `path` and its missing parents, each entry synced."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
        sync_directory(path.parent)


def as_made_here(path: Path) -> None:
    """Give a file the mode that any other gets here: libraries (safetensors) make theirs for their user alone."""
    path.chmod(0o666 & ~umask())


def read_only(path: Path) -> None:
    """For all who may read what is made here, and nobody may write it. Another user's that is read-only already stays as it is:
    nobody else may change its mode."""
    status, wanted = path.stat(), 0o444 & ~umask()
    mode = stat.S_IMODE(status.st_mode)
    if mode != wanted and (mode & 0o222 or status.st_uid == os.geteuid()):
        path.chmod(wanted)


def umask() -> int:
    """Of this process; to ask the system is to set it, which other threads would notice."""
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
    os.umask(now := os.umask(0o077))
    return now


def sync_file(path: Path) -> None:
    _sync(plainly(path, os.O_RDONLY))


def sync_directory(path: Path) -> None:
    _sync(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def sync_folders(path: Path) -> None:
    """Itself and all below, their files apart."""
    for folder, _, _ in os.walk(path):
        sync_directory(Path(folder))


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def refusals(path: Path | str) -> Iterator[None]:
    """Say in one sentence why the system would not write `path`; errors that are not refusals pass unchanged."""
    try:
        yield
    except OSError as error:
        if (told := refusal(system_error(error) or error, path)) is None:
            raise
        raise told from error


def refusal(error: OSError, path: Path | str) -> LlmosError | None:
    """The sentence for an error by which the system refused to write `path`; None for other errors."""
    if error.errno not in _REFUSALS:
        return None
    reason, hint = _REFUSALS[error.errno]
    return LlmosError(f"cannot write {path}: {reason}", hint=hint)


def system_error(error: BaseException | None) -> OSError | None:
    """The system's own error behind `error`: itself, what a library made it of, or what one says in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error
        if told := _TOLD.search(str(error)):
            return OSError(int(told[1]), os.strerror(int(told[1])))
        if isinstance(error, OSError) and _CUT_SHORT.search(str(error)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        error = error.__cause__ or error.__context__
    return None
