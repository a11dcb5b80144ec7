"""An operation that was cut off: what is done of it already is synced before it counts as done.

Who was killed may have written, renamed and removed without living to sync that. What is found as it should be is not done again, so
that a power cut would take it after the operation had been logged, and nobody would know that it is to be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core import aside, atomic, signatures
from llmos_cli.core.dropped import mark_of
from llmos_cli.core.operation import Operation
from llmos_cli.core.refs import RUNS
from llmos_cli.core.sealed import Sealed


def sync(root: Path, dot: Path, operation: Operation, *, log: Path) -> None:
    """The log, and every folder in which carrying it out makes, moves or removes a name, and those above it, the deepest first."""
    folders = {dot}
    for path in _named(root, dot, operation):
        folders |= {folder for folder in path.parents if folder.is_relative_to(root) and folder.is_dir()}
    with atomic.refusals(dot):
        if log.exists():
            atomic.sync_file(log)
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            atomic.sync_directory(folder)


def set_aside(dot: Path, pending: Path) -> str:
    """What no llmos can have written is not carried out, and kept; in words."""
    kept = aside.keep(dot, pending)
    atomic.remove(pending)
    return (
        f".llmos/{pending.name} was no operation that llmos could have begun: it was not carried out, and is kept in .llmos/{aside.FOLDER}/"
        f"{kept}; `llmos fsck` says whether something was left half done"
    )


def _named(root: Path, dot: Path, operation: Operation) -> Iterator[Path]:
    for change in operation.changes:
        yield (dot if change.is_ref else root) / change.what
    if operation.run or operation.collects:
        yield dot / RUNS / (operation.run or "any")
    sealed = Sealed(root, dot)
    for checkpoint in (*operation.drops, *operation.collects, *operation.seals, *operation.unseals):
        yield from (root / mark_of(checkpoint), signatures.path(dot, checkpoint))
        yield from (sealed.directory / checkpoint, sealed.waiting / checkpoint)
        for folder in (root / "checkpoints" / checkpoint, sealed.waiting / checkpoint):
            yield folder
            yield from (path / "any" for path in (folder, *folder.rglob("*")) if path.is_dir())
