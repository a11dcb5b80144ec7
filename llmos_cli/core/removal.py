"""Removing checkpoints: their weights (`rm`), or all of them (`gc`). Idempotent, since a removal that was cut off is repeated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmos_cli.core import signatures
from llmos_cli.core.atomic import remove, sync_directory
from llmos_cli.core.dropped import Dropped
from llmos_cli.core.processes import scratch_name
from llmos_cli.core.refs import RUNS, Refs
from llmos_cli.core.sealed import Sealed
from llmos_cli.core.staging import discard


def collect(root: Path, dot: Path, refs: Refs, checkpoints: Sequence[str]) -> None:
    """Remove `checkpoints` (children before their parents: nobody must find one whose parent is gone) and their runs' refs. What the
    disk refuses to remove keeps those."""
    gone = set(checkpoints)
    runs = {run: checkpoint for run, checkpoint in refs.under(RUNS).items() if checkpoint in gone}
    try:
        _remove(root, dot, refs, checkpoints, runs)
    except BaseException:
        for run, checkpoint in runs.items():
            if (root / "checkpoints" / checkpoint).is_dir() and refs.read(RUNS + run) is None:
                refs.write(RUNS + run, checkpoint)
        raise


def _remove(root: Path, dot: Path, refs: Refs, checkpoints: Sequence[str], runs: Iterable[str]) -> None:
    for run in runs:
        refs.write(RUNS + run, None)
    for checkpoint in checkpoints:
        if (signature := signatures.path(dot, checkpoint)).exists():
            remove(signature)
        take_away(root / "checkpoints" / checkpoint, dot)
    Sealed(root, dot).forget(checkpoints)


def take_away(directory: Path, dot: Path) -> None:
    """A checkpoint's folder, renamed away first: half a checkpoint must not be found under its id."""
    if directory.is_dir():
        aside = dot / "tmp" / scratch_name("removed")
        directory.rename(aside)
        sync_directory(directory.parent)
        discard(aside)
    Dropped(dot).restore(directory.name)
