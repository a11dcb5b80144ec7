"""Staging: folders under `.llmos/tmp/` where what is not finished yet is made, out of everybody's sight."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.processes import Process, host, this_process


@contextlib.contextmanager
def stage(tmp: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, unless it was renamed to its final place."""
    for folder in leftovers(tmp):
        shutil.rmtree(folder, ignore_errors=True)
    process = this_process()
    folder = tmp / f"stage_{process.pid}_{process.started}_{os.urandom(4).hex()}_{process.host}"
    with atomic.refusals(folder):
        atomic.make_directory(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(tmp: Path) -> list[Path]:
    """Staged folders whose process is dead: killed before it could tidy up."""
    found = []
    for path in tmp.glob("stage_*"):
        _, pid, started, _, where = path.name.split("_", 4)
        if where == host() and not Process(int(pid), float(started), where).alive():
            found.append(path)
    return found
