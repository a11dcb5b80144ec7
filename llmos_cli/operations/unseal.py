"""unseal: open sealed checkpoints again, to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.key import Ask, given_key
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.remote.parallel import Meter
from llmos_cli.core.storing import removed
from llmos_cli.core.view import Lines, View, short, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations.seal import sharing, told
from llmos_cli.operations.sealing import decrypted, seal_of


@dataclass(frozen=True)
class UnsealResult:
    """`checkpoints`: full ids; `files`, `bytes` of all of them."""

    checkpoints: tuple[str, ...]
    files: int
    bytes: int
    dry_run: bool

    def view(self) -> View:
        verb = "would open" if self.dry_run else "opened"
        return Lines([f"{verb} {', '.join(map(short, self.checkpoints))}: {self.files} files, {size(self.bytes)}"])


def unseal(
    ws: Workspace,
    rev: str = "HEAD",
    *,
    with_lineage: bool = False,
    key_file: Path | None = None,
    ask: Ask,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> UnsealResult:
    """`with_lineage`: those that share files with it, too, where it is open already as well. Nothing is opened unless all of them
    can be, but for what was sealed with another key."""
    checkpoint = ws.resolve(rev)
    manifests = [ws.manifest(each) for each in _to_open(ws, checkpoint, with_lineage=with_lineage)]
    if not dry_run:
        manifests = _open(ws, checkpoint, manifests, given_key(key_file, ask), emit)
    ids = tuple(each.id for each in manifests)
    return UnsealResult(ids, sum(len(m.tree) for m in manifests), sum(m.size for m in manifests), dry_run)


def _to_open(ws: Workspace, checkpoint: str, *, with_lineage: bool) -> list[str]:
    if ws.closed(checkpoint) not in ("sealed", ""):
        raise removed(ws, checkpoint)
    found = _sealed_with(ws, checkpoint)
    others = sorted(found - {checkpoint})
    if gone := [each for each in others if each in ws.dropped]:
        raise UsageError(
            f"{short(checkpoint)} shares files with {told(ws, gone)}, removed and still there for undo",
            hint="`llmos gc --window now` frees what was removed, or `llmos undo` brings it back to be opened as well",
        )
    if others and not with_lineage:
        said = "shares files with" if checkpoint in found else "is open, and shares files with the sealed"
        raise UsageError(
            f"{short(checkpoint)} {said} {told(ws, others)}",
            hint="as long as one of them is sealed, none of its files should be open; --with-lineage opens all of them",
        )
    if not found:
        raise UsageError(f"{short(checkpoint)} is not sealed", hint="`llmos log` marks what is")
    return sorted(found)


def _sealed_with(ws: Workspace, checkpoint: str) -> set[str]:
    """What is sealed of a checkpoint and all that shares files with it. What was removed in the clear hides nothing, and what was given up
    nobody can open."""
    dropped = ws.dropped.all()
    sealed = ws.sealed.all() - (dropped & ws.lost.all().keys())
    return sharing(ws, checkpoint, dropped - sealed) & sealed


def _open(ws: Workspace, checkpoint: str, manifests: Sequence[Manifest], key: bytes, emit: Emit) -> list[Manifest]:
    """Those that were opened."""
    group = {each.id for each in manifests}
    fitting = _of_this_key(ws, checkpoint, manifests, key, emit)
    with _opened(ws, fitting, key, emit) as folder, ws.oplog.locked(ws.emit):
        if _sealed_with(ws, checkpoint) != group or any(each in ws.dropped for each in group):
            raise Conflict(
                "another command sealed, opened or removed one of them meanwhile",
                hint="`llmos log` shows what is sealed",
            )
        for each in fitting:
            ws.sealed.offer(each.id, folder / each.id)
        ids = [each.id for each in fitting]
        ws.oplog.seal_locked(f"unseal {' '.join(map(short, ids))}", unseals=ids)
    _share_again(ws, fitting)
    return fitting


def _of_this_key(
    ws: Workspace, checkpoint: str, manifests: Sequence[Manifest], key: bytes, emit: Emit
) -> list[Manifest]:
    """What was sealed with another key stays sealed, or those who have only one of the two could open neither."""
    fitting = [each for each in manifests if seal_of(ws, each).cipher(key)]
    rest = [each for each in manifests if each not in fitting]
    asked = [each for each in rest if each.id == checkpoint]
    for each in asked or ([] if fitting else rest):
        seal_of(ws, each).opener(key)
    if rest:
        names = told(ws, [each.id for each in rest])
        emit(Note(f"{names} shares files with it and stays sealed: it takes another key", "warning"))
    return fitting


@contextmanager
def _opened(ws: Workspace, manifests: Sequence[Manifest], key: bytes, emit: Emit) -> Iterator[Path]:
    """A folder with one folder for each checkpoint, which nobody sees and a kill does not leave behind."""
    ciphers = [seal_of(ws, each).opener(key) for each in manifests]
    meter = Meter("unseal", sum(each.size for each in manifests), emit)
    with ws.sealed.opening() as folder:
        for each, cipher in zip(manifests, ciphers, strict=True):
            atomic.make_directory(folder / each.id)
            decrypted(ws, each, cipher, folder / each.id, meter)
        meter.end()
        yield folder


def _share_again(ws: Workspace, manifests: Sequence[Manifest]) -> None:
    """Last: files in the store are in the clear, and must not be there before the checkpoint is open. A kill in between only
    costs space."""
    for each in manifests:
        directory = ws.checkpoints / each.id
        ws.objects.adopt(directory, each.tree, emit=ws.emit)
        for folder in {(directory / name).parent for name in each.tree}:
            atomic.sync_directory(folder)
        ws.index.note_file_times(each.id, {name: (directory / name).stat().st_mtime_ns for name in each.tree})
