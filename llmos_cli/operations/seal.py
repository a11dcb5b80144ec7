"""seal: keep checkpoints encrypted, in the workspace too; the manifests stay, so that lineage and numbers can still be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import urls
from llmos_cli.core.cipher import SALT, Cipher
from llmos_cli.core.key import Ask, given_key, make_key
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.protection import readers, with_ancestors
from llmos_cli.core.refs import REMOTES
from llmos_cli.core.seal import Seal
from llmos_cli.core.storing import bare
from llmos_cli.core.view import Lines, View, short, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, UsageError
from llmos_cli.events import Emit, Note, ignore
from llmos_cli.operations.sealing import encrypted

_NAMED = 8
"""Checkpoints that a refusal names: of a hundred nobody reads more."""


@dataclass(frozen=True)
class SealResult:
    """`checkpoints`: full ids; `bytes` of their files, each content once; `new_key`: where a key was made for it."""

    checkpoints: tuple[str, ...]
    files: int
    bytes: int
    new_key: str
    dry_run: bool

    def view(self) -> View:
        verb = "would seal" if self.dry_run else "sealed"
        said = f"{verb} {', '.join(map(short, self.checkpoints))}: {self.files} files, {size(self.bytes)}"
        if not self.new_key:
            return said
        made = "would be made" if self.dry_run else "was made"
        return Lines(
            [said, f"a key {made} in {self.new_key}: keep a copy elsewhere, without it nobody opens them again"]
        )


def seal(
    ws: Workspace,
    rev: str = "HEAD",
    *,
    with_lineage: bool = False,
    key_file: Path | None = None,
    ask: Ask,
    dry_run: bool = False,
    emit: Emit = ignore,
) -> SealResult:
    """A `key_file` that is not there yet is made, with a new key. `with_lineage`: what shares files with it as well."""
    checkpoint = ws.resolve(rev)
    manifests = _to_seal(ws, checkpoint, with_lineage=with_lineage)
    contents = {entry.sha256: entry.size for each in manifests for entry in each.tree.values()}
    place = None if key_file is None else _place(ws, key_file)
    new_key = "" if place is None or place.exists() else str(place)
    ids = tuple(each.id for each in manifests)
    _warn(ws, ids, emit)
    if not dry_run:
        with _key_made(ws, new_key, ids):
            salt = os.urandom(SALT)
            _seal(ws, checkpoint, manifests, Cipher(given_key(place, ask, twice=True), salt), salt, emit)
    return SealResult(ids, len(contents), sum(contents.values()), new_key, dry_run)


@contextmanager
def _key_made(ws: Workspace, file: str, checkpoints: Sequence[str]) -> Iterator[None]:
    """A new key in `file`, if one is to be made, which goes again where nothing was sealed with it, or will be."""
    if file:
        make_key(Path(file))
    try:
        yield
    except BaseException:
        if file and not (ws.oplog.is_pending or any(each in ws.sealed for each in checkpoints)):
            Path(file).unlink(missing_ok=True)
        raise


def _to_seal(ws: Workspace, checkpoint: str, *, with_lineage: bool) -> list[Manifest]:
    gone = {each for each in ws.dropped.all() if bare(ws, each)}
    others = sorted(sharing(ws, checkpoint, gone | ws.sealed.all()) - {checkpoint})
    if removed := ws.dropped.all() & {*others}:
        raise UsageError(
            f"{short(checkpoint)} shares files with {told(ws, sorted(removed))}, removed and still there for undo",
            hint="`llmos gc --window now` frees what was removed, or `llmos undo` brings it back to be sealed as well",
        )
    sealed = checkpoint in ws.sealed
    if others and not with_lineage:
        raise UsageError(
            f"{short(checkpoint)} {'is sealed, and ' if sealed else ''}shares files with {told(ws, others)}",
            hint="as long as one of them is open, so are those files; --with-lineage seals all of them",
        )
    if sealed and not others:
        raise UsageError(f"{short(checkpoint)} is sealed already", hint=f"`llmos unseal {short(checkpoint)}` opens it")
    found = others if sealed else [checkpoint, *others]
    for each in found:
        _check_unread(ws, each)
    return [ws.checkpoint(each).manifest for each in found]


def sharing(ws: Workspace, checkpoint: str, but: Iterable[str]) -> set[str]:
    """What shares a file with a checkpoint, or with another that does: it comes along, or the file is not what it was."""
    left_out = set(but)
    found, waiting = set[str](), {checkpoint}
    while waiting:
        found |= waiting
        contents = {entry.sha256 for each in waiting for entry in ws.manifest(each).tree.values()}
        waiting = ws.index.having(contents) - left_out - found
    return found


def told(ws: Workspace, checkpoints: Sequence[str]) -> str:
    """Short ids, with what they are called."""
    names = ws.refs.pointing()
    named = [f"{short(each)} ({', '.join(names[each])})" if each in names else short(each) for each in checkpoints]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + more


def _check_unread(ws: Workspace, checkpoint: str) -> None:
    """A run that reads it holds its files open, and one that can go on has kept what it read."""
    if runs := readers(ws, checkpoint):
        raise UsageError(
            f"{short(checkpoint)} is in use by {', '.join(runs)}",
            hint="`llmos stop` ends what runs; `llmos gc --expire now` forgets what could be resumed",
        )


def _warn(ws: Workspace, checkpoints: Sequence[str], emit: Emit) -> None:
    """What was pushed before stays there as it was."""
    for remote in {ref.partition("/")[0] for ref in ws.refs.names(REMOTES)}:
        there = with_ancestors(ws, ws.refs.under(f"{REMOTES}{remote}/").values())
        if sent := [short(each) for each in checkpoints if each in there]:
            emit(Note(f"{remote} was sent {', '.join(sent)} before: what is there stays as it was", "warning"))


def _place(ws: Workspace, file: Path) -> Path:
    place = urls.path(file).resolve()
    if place.is_relative_to(ws.root):
        raise UsageError(
            f"{file} is in the workspace: whoever takes that has the key too", hint="keep it elsewhere, in ~/.keys say"
        )
    return place


def _seal(
    ws: Workspace, checkpoint: str, manifests: Sequence[Manifest], cipher: Cipher, salt: bytes, emit: Emit
) -> None:
    with ws.stage() as staged:
        made = encrypted(ws, manifests, cipher, staged, emit)
        with ws.oplog.locked(ws.emit):
            _check_same(ws, checkpoint, manifests)
            ws.sealed.keep(staged, (entry.sha256 for entry in made.values()))
            for each in manifests:
                tree = {name: made[entry.sha256] for name, entry in each.tree.items()}
                ws.sealed.expect(Seal(each.id, salt.hex(), cipher.check(), tree))
            ids = [each.id for each in manifests]
            ws.oplog.seal_locked(f"seal {' '.join(map(short, ids))}", seals=ids)


def _check_same(ws: Workspace, checkpoint: str, manifests: Sequence[Manifest]) -> None:
    """What others did while files were being encrypted: committed what shares one, began to read, removed or sealed."""
    now = _to_seal(ws, checkpoint, with_lineage=True)
    if {each.id for each in now} != {each.id for each in manifests}:
        raise Conflict(
            "another checkpoint with the same files came or went meanwhile", hint="nothing was changed; try again"
        )
