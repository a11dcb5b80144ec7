"""What stands in a folder where llmos keeps things, for all who look for their own there, and who open it.

Names that begin with a dot are an operating system's (`.DS_Store`, `._a`, `.directory`, `.nfs0001`) and count for nobody. What else
is not llmos's own is passed over by those who look, and told by `fsck` (`operations/integrity/strangers.py`).

A file that is opened by its name is a plain one, or NotPlain says what else stands there: neither a link, which leads to what is not
llmos's, nor a pipe or a device, at which one would wait for ever or never come to an end.

    read_bytes(path)                        all of it        linked=True: it is the user's, and may be a link to a plain one
    open(path, "rb", opener=plainly)        as `open` does   opener=through_links: the same
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from llmos_cli.errors import NotPlain


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """In the order of their names; none where there is no such folder."""
    try:
        with os.scandir(folder) as found:
            return sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_file(entry: os.DirEntry[str]) -> bool:
    """A plain one: neither a link nor a pipe, which nobody of llmos made, and which a reader could wait at for ever."""
    return entry.is_file(follow_symlinks=False)


def is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def files(folder: Path) -> list[str]:
    return [each.name for each in entries(folder) if is_file(each)]


def folders(folder: Path) -> list[str]:
    return [each.name for each in entries(folder) if is_folder(each)]


def read_bytes(path: Path, *, linked: bool = False) -> bytes:
    """All of a plain file; NotPlain, or what `open` raises."""
    with open(path, "rb", opener=through_links if linked else plainly) as file:
        return file.read()


def read_text(path: Path, *, linked: bool = False, errors: str = "strict") -> str:
    """`errors`: what becomes of bytes that are not UTF-8, as `open` has it."""
    with open(path, encoding="utf-8", errors=errors, opener=through_links if linked else plainly) as file:
        return file.read()


def is_plain(path: Path | str) -> bool:
    """As `is_file`, of a path; False where nothing is."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def must_be_plain(path: Path) -> None:
    """NotPlain where something else stands there; that nothing does is fine."""
    if what_else(path):
        raise _not_plain(path, os.O_NOFOLLOW)


def plainly(path: Path | str, flags: int) -> int:
    """The descriptor of a plain file."""
    return _opened(path, flags | os.O_NOFOLLOW)


def through_links(path: Path | str, flags: int) -> int:
    """The same of a user's own file, which may stand elsewhere."""
    return _opened(path, flags)


_REFUSED = {errno.ELOOP, errno.ENXIO, errno.EISDIR}
"""What the system says of a link, of a pipe without a reader and of a folder where it was asked for a file."""


def _opened(path: Path | str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise _not_plain(path, flags) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path, flags)
    return descriptor


def _not_plain(path: Path | str, flags: int) -> NotPlain:
    stands = path if flags & os.O_NOFOLLOW else Path(path).resolve()
    return NotPlain(
        f"{path} is {what_else(stands)}, and no plain file",
        hint="llmos did not put it there, and does not read it: move it away; `llmos fsck` says what is missing then",
    )


def what_else(path: Path | str) -> str:
    """What stands there that is no plain file, in words; empty where it is one, or nothing is."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return "" if stat.S_ISREG(mode) else next((kind for is_one, kind in _KINDS if is_one(mode)), "a device")


_KINDS = ((stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISDIR, "a folder"), (stat.S_ISSOCK, "a socket"))
