"""Claims: locks by exclusive creation, for file systems that several machines share.

There `flock` may be refused, or heeded by one machine alone. That a file is made by one only (O_EXCL) is what NFS since
version 3, SMB, FUSE and cluster file systems all promise. What they cannot promise is to free it when its holder dies: a
dead process of this machine is seen to be dead, one of another machine is not.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from llmos_cli.core.atomic import refusals, write_all

_SHARED = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "gluster",
    "lustre",
    "beegfs",
    "gpfs",
    "ocfs2",
    "gfs2",
    "fuse",
    "virtiofs",
)
"""Beginnings of the types of file systems that may be mounted on other machines too."""


def path_of(lock: Path) -> Path:
    return lock.with_name(lock.name + ".claim")


def needed(folder: Path) -> bool:
    """Whether `flock` alone may not be enough in a folder."""
    return _type(folder.stat().st_dev).startswith(_SHARED)


def claim(lock: Path, holder: bytes) -> bool:
    """Make the file that says whose the lock is; False where it is somebody's."""
    with refusals(lock), contextlib.suppress(FileExistsError):
        descriptor = os.open(path_of(lock), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # it is ours without a name too, and on a full disk `gc` must get it
            write_all(descriptor, holder)
        os.close(descriptor)
        return True
    return False


def release(lock: Path) -> None:
    path_of(lock).unlink(missing_ok=True)


def _type(device: int) -> str:
    """Of the file system with that number, as the kernel lists it: `ext4`, `nfs4`, `fuse.sshfs`; empty where it does not."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _mounts():
        fields = line.split()
        if fields[2] == number:
            return fields[fields.index("-") + 1]
    return ""


def _mounts() -> list[str]:
    """See proc(5) for the fields of mountinfo."""
    if sys.platform != "linux":
        return []
    try:
        return Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []
