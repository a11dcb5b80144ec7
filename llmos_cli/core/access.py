"""Who may change a workspace: nobody in read-only mode, which `--read-only` or LLMOS_READ_ONLY=1 begins.

Then not one byte of it changes, those of caches, locks and records included. What only reads works, as it does on a file system
that is mounted read-only: what would be remembered is forgotten, and what must be written somewhere is in the user's own folder.
What changes something is refused before it begins.

Otherwise whom the modes of its folders let in. What llmos makes has the mode that the umask says, libraries' files included; in a
workspace that was given to a group (`init --shared GROUP`: the folder is setgid, and the group may write) it is the group's.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from llmos_cli.core.atomic import make_directory, refusals, umask
from llmos_cli.core.places import cache_home
from llmos_cli.errors import NotFound, UsageError

VARIABLE = "LLMOS_READ_ONLY"
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def read_only() -> bool:
    """UsageError where the variable says neither yes nor no: half a promise is none."""
    said = os.environ.get(VARIABLE, "").lower()
    if said not in _YES + _NO:
        raise UsageError(f"{VARIABLE} must be 1 or 0, not {said!r}", hint="1 keeps the workspace as it is")
    return said in _YES


def require_change() -> None:
    """UsageError in read-only mode."""
    if read_only():
        raise UsageError(
            "this would change the workspace, and read-only mode keeps it as it is",
            hint=f"leave --read-only out, and {VARIABLE} unset; `--dry-run` of the command says what it would do",
        )


def writable(folder: Path) -> bool:
    """Whether this process may write there, or make it."""
    return not read_only() and (os.access(folder, os.W_OK) or not folder.exists())


def require_writable(folder: Path) -> None:
    """As `require_change`; LlmosError where the system would refuse the first write, before hours of work come to it."""
    require_change()
    if not writable(folder):
        mounted_so = os.statvfs(folder).f_flag & os.ST_RDONLY
        with refusals(folder):
            raise OSError(errno.EROFS if mounted_so else errno.EACCES, "not writable")


def require_outside(root: Path, path: Path | None) -> None:
    """UsageError where a file of the user's would be written into a workspace that is to stay as it is."""
    if path is not None and path.resolve().is_relative_to(root):
        require_change()


def give_to_group(folders: Sequence[Path], group: str) -> None:
    """What is made in these folders from now on is the group's (setgid), and its members may change it."""
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError:
        raise NotFound(f"there is no group {group} on this system", hint="`id -Gn` lists those you are in") from None
    for folder in folders:
        with refusals(folder):
            make_directory(folder)
            os.chown(folder, -1, number)
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXG | stat.S_ISGID)


def work_as_group(folder: Path) -> None:
    """Where a folder is a group's that may write there, so is what this process makes from now on, whatever its umask was."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWGRP and mode & stat.S_ISGID:
        os.umask(umask() & ~stat.S_IRWXG)


def own_folder(root: Path) -> Path:
    """Of the user, for what a workspace that cannot be written has no place for: caches, and work that is thrown away."""
    return cache_home() / "workspaces" / hashlib.sha256(str(root).encode()).hexdigest()[:16]
