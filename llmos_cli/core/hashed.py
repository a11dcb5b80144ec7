"""Files that are named by their SHA-256 stand at `aa/bbbb...`, so that no folder gets too many."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterator
from pathlib import Path

from llmos_cli.core.listing import entries, is_file, is_folder

_FOLDER, _FILE = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{62}")


def place(sha256: str) -> str:
    """Relative to the folder of all of them, with `/`, as paths and remotes have it."""
    return f"{sha256[:2]}/{sha256[2:]}"


def stored(directory: Path, besides: Container[str] = ()) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file that stands so: its SHA-256, and its entry. Those of which the SHA-256 is in `besides` are not even looked at."""
    for folder in _folders(directory):
        for each in entries(folder.path):
            if (name := folder.name + each.name) not in besides and _fits(each):
                yield name, each


def strange(directory: Path) -> Iterator[os.DirEntry[str]]:
    """What stands in those folders beside them."""
    for folder in _folders(directory):
        yield from (each for each in entries(folder.path) if not _fits(each))


def is_part(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder `aa`."""
    return _FOLDER.fullmatch(entry.name) is not None and is_folder(entry)


def _folders(directory: Path) -> list[os.DirEntry[str]]:
    return [each for each in entries(directory) if is_part(each)]


def _fits(entry: os.DirEntry[str]) -> bool:
    return _FILE.fullmatch(entry.name) is not None and is_file(entry)
