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
from llmos_cli.events import Emit, ignore
from llmos_cli.operations.seal import sharing
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
    """`with_lineage`: those that share files with it, too. Nothing is opened unless all of them can be."""
    manifests = [ws.manifest(each) for each in _to_open(ws, ws.resolve(rev), with_lineage=with_lineage)]
    if not dry_run:
        with _opened(ws, manifests, given_key(key_file, ask), emit) as folder, ws.oplog.locked(ws.emit):
            _open(ws, manifests, folder)
        _share_again(ws, manifests)
    ids = tuple(each.id for each in manifests)
    return UnsealResult(ids, sum(len(m.tree) for m in manifests), sum(m.size for m in manifests), dry_run)


def _to_open(ws: Workspace, checkpoint: str, *, with_lineage: bool) -> list[str]:
    if (closed := ws.closed(checkpoint)) != "sealed":
        if closed:
            raise removed(ws, checkpoint)
        raise UsageError(f"{short(checkpoint)} is not sealed", hint="`llmos log` marks what is")
    found = sharing(ws, checkpoint, ()) if with_lineage else {checkpoint}
    return sorted(each for each in found if ws.closed(each) == "sealed")


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


def _open(ws: Workspace, manifests: Sequence[Manifest], folder: Path) -> None:
    ids = [each.id for each in manifests]
    if any(ws.closed(each) != "sealed" for each in ids):
        raise Conflict(
            "another command opened or removed one of them meanwhile", hint="`llmos log` shows what is sealed"
        )
    for each in ids:
        ws.sealed.offer(each, folder / each)
    ws.oplog.seal_locked(f"unseal {' '.join(map(short, ids))}", unseals=ids)


def _share_again(ws: Workspace, manifests: Sequence[Manifest]) -> None:
    """Last: files in the store are in the clear, and must not be there before the checkpoint is open. A kill in between only
    costs space."""
    for each in manifests:
        directory = ws.checkpoints / each.id
        ws.objects.adopt(directory, each.tree, emit=ws.emit)
        for folder in {(directory / name).parent for name in each.tree}:
            atomic.sync_directory(folder)
        ws.index.note_file_times(each.id, {name: (directory / name).stat().st_mtime_ns for name in each.tree})
