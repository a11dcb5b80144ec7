"""What stands in a folder where llmos keeps things, for all who look for their own there.

Names that begin with a dot are an operating system's (`.DS_Store`, `._a`, `.directory`, `.nfs0001`) and count for nobody. What else
is not llmos's own is passed over by those who look, and told by `fsck` (`operations/integrity/strangers.py`).
"""

from __future__ import annotations

import os
from pathlib import Path


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
