"""Staging: folders under `.llmos/tmp/` where what is not finished yet is made, out of everybody's sight."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.processes import is_abandoned, scratch_name


@contextlib.contextmanager
def stage(tmp: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, unless it was renamed to its final place."""
    for path in leftovers(tmp):
        discard(path)
    folder = tmp / scratch_name("stage")
    with atomic.refusals(folder):
        atomic.make_directory(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(tmp: Path) -> list[Path]:
    """What processes that are dead now left behind: killed before they could tidy up."""
    return [path for path in tmp.iterdir() if is_abandoned(path.name)] if tmp.is_dir() else []


def discard(path: Path) -> None:
    """Remove a file or a folder; somebody else may be removing it too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
