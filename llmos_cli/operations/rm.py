"""rm: drop the weights of checkpoints, and keep their manifests, so that lineage stays whole.

From then on the weights count for nothing, and `undo` brings them back; `gc` frees their bytes once the operation log's window
has passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmos_cli.core.dropped import mark_of
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.operation import Change
from llmos_cli.core.oplog import WINDOW
from llmos_cli.core.protection import check_named, holders, users
from llmos_cli.core.view import Lines, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.operations.summary import SHORT


@dataclass(frozen=True)
class Removed:
    """`freed`: bytes that `gc` gives back to the disk; what other checkpoints share stays."""

    id: str
    size: int
    freed: int


@dataclass(frozen=True)
class RmResult:
    removed: tuple[Removed, ...]
    dry_run: bool

    def view(self) -> View:
        verb = "would remove" if self.dry_run else "removed"
        lines = [
            f"{verb} the weights of {each.id[:SHORT]}: {size(each.freed)} of {size(each.size)} to be freed"
            for each in self.removed
        ]
        until = f"`llmos undo` brings them back for {WINDOW / 86400:g} days"
        return Lines([*lines, f"{until}, then `llmos gc` frees them (at once: `llmos gc --window now`)"])


def rm(ws: Workspace, revs: Sequence[str], *, force: bool = False, dry_run: bool = False) -> RmResult:
    """Nothing is removed unless all of them may be."""
    # Under the lock of the refs, so that nobody can tag what is being removed, or collect it first.
    with ws.oplog.locked(ws.emit):
        checkpoints = list(dict.fromkeys(ws.resolve(rev) for rev in revs))
        manifests = [ws.manifest(checkpoint) for checkpoint in checkpoints]
        if not force:
            _check_unused(ws, checkpoints)
        removed = freed_by(ws, manifests)
        if not dry_run:
            name = f"rm {' '.join(checkpoint[:SHORT] for checkpoint in checkpoints)}"
            dropped = ws.dropped.all()
            marks = [Change(mark_of(each), None, "") for each in checkpoints if each not in dropped]
            if marks:
                ws.oplog.apply_locked(name, marks)
    return RmResult(removed, dry_run)


def _check_unused(ws: Workspace, checkpoints: Sequence[str]) -> None:
    for checkpoint in checkpoints:
        if used := users(ws, checkpoint):
            raise UsageError(
                f"{checkpoint[:SHORT]} is in use by {', '.join(used)}",
                hint=f"delete or move those first{_of_stages(used)}, or remove its weights all the same with --force",
            )
    check_named(ws, checkpoints)


def _of_stages(used: Sequence[str]) -> str:
    """No command takes a stage's name away."""
    return (
        " (a stage lets go when `llmos run` makes another)" if any(each.startswith("stage ") for each in used) else ""
    )


def freed_by(ws: Workspace, manifests: Sequence[Manifest]) -> tuple[Removed, ...]:
    """In the order of removing: what two of them share is freed with the second."""
    count = everyone(ws)
    return tuple(Removed(manifest.id, manifest.size, freed_with(ws, manifest, count)) for manifest in manifests)


def everyone(ws: Workspace) -> Counter[str]:
    """SHA-256 -> in how many checkpoints that have their weights a file is, of sealed ones as it is encrypted."""
    return holders(ws) + ws.sealed.named(without=ws.dropped.all() | ws.sealed.unreadable())


def freed_with(ws: Workspace, manifest: Manifest, count: Counter[str]) -> int:
    """Bytes that go with a checkpoint, after those that were taken from `count` before it; its own are taken now."""
    closed = ws.closed(manifest.id)
    if ws.storage == "copy" and not closed:
        return manifest.size
    held = {} if closed else {entry.sha256: entry.size for entry in manifest.tree.values()}
    if closed == "sealed":
        held = ws.sealed.sizes(manifest.id)
    count.subtract(held.keys())
    return sum(size for sha256, size in held.items() if count[sha256] <= 0)
