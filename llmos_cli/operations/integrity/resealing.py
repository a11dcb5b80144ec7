"""Sealing anew: what is damaged of a sealed checkpoint comes back, for who has its key, from whoever has it in the clear.

What is encrypted again has another salt and so another name. First those files get their places, then the seals name them, last goes what
they stand for: a kill in between leaves files that no seal names, which `gc` removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.cipher import SALT, Cipher
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.objects import hash_file
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.seal import Seal, belongs
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit
from llmos_cli.operations.integrity.problem import Problem, Repaired
from llmos_cli.operations.sealing import damaged, encrypted_files

Copy = Callable[[FileEntry, Path], str | None]
"""Puts a good copy of a content somewhere, and says where it was; None where nobody has one."""


@dataclass(frozen=True)
class Torn:
    """A sealed checkpoint, the cipher of its seal, and the names of its files that this does not open; `before`: its seal, or none
    where that cannot be read, and all of it is to be sealed anew."""

    manifest: Manifest
    before: Seal | None
    seal: Seal
    cipher: Cipher
    names: Sequence[str]


def suspects(ws: Workspace, problems: Iterable[Problem]) -> list[str]:
    """Sealed checkpoints of which something is damaged."""
    return sorted({each.checkpoint for each in problems} & ws.sealed.all() - ws.dropped.all())


def in_the_clear(checkpoints: Iterable[str], places: Sequence[Remote]) -> dict[str, str]:
    """Those that a remote has as they were before they were sealed, and the name of the remote."""
    found = {each: [there.name for there in places if there.has_weights(each)] for each in checkpoints}
    return {each: names[0] for each, names in found.items() if names}


def sealed_anew(
    ws: Workspace, checkpoints: Iterable[str], key: bytes | None, copy: Copy, emit: Emit
) -> Iterator[Repaired]:
    if key is None:
        return
    for each in checkpoints:
        if (torn := _torn(ws, each, key)) is not None and torn.names:
            yield from _sealed_anew(ws, torn, copy, emit)


def forget_nameless(ws: Workspace) -> None:
    """A damaged encrypted file that no seal names is worth nothing: nobody knows any more how it would be opened."""
    with ws.oplog.locked(ws.emit):
        for sha256, entry in list(ws.sealed.unnamed()):
            if hash_file(Path(entry.path)).sha256 != sha256:
                atomic.remove(Path(entry.path))


def _torn(ws: Workspace, checkpoint: str, key: bytes) -> Torn | None:
    """None where the key is not its, or its manifest does not say what it holds."""
    try:
        manifest = ws.manifest(checkpoint)
    except Corrupt:
        return None
    if (seal := _seal(ws, checkpoint)) is not None and belongs(seal, manifest):
        cipher = seal.cipher(key)
        return Torn(manifest, seal, seal, cipher, damaged(ws, manifest, seal, cipher)) if cipher else None
    others = [found for each in ws.sealed.all() - {checkpoint} if (found := _seal(ws, each))]
    if others and not any(each.cipher(key) for each in others):
        return None
    salt = os.urandom(SALT)
    cipher = Cipher(key, salt)
    return Torn(manifest, seal, Seal(checkpoint, salt.hex(), cipher.check()), cipher, list(manifest.tree))


def _seal(ws: Workspace, checkpoint: str) -> Seal | None:
    try:
        return ws.sealed.seal(checkpoint)
    except (Corrupt, FileNotFoundError):
        return None


def _sealed_anew(ws: Workspace, torn: Torn, copy: Copy, emit: Emit) -> Iterator[Repaired]:
    tree = torn.manifest.tree
    with ws.sealed.opening() as clear, ws.stage() as staged:
        wanted = {tree[name].sha256: tree[name] for name in torn.names}
        found = {sha256: copy(entry, clear / sha256) for sha256, entry in wanted.items()}
        good = {sha256: (clear / sha256, wanted[sha256]) for sha256, source in found.items() if source}
        names = [name for name in torn.names if tree[name].sha256 in good]
        if not names or not torn.seal.tree.keys() | {*names} >= tree.keys():
            return
        made = encrypted_files(good, torn.cipher, staged, emit)
        with ws.oplog.locked(ws.emit):
            if torn.manifest.id not in ws.sealed or _seal(ws, torn.manifest.id) != torn.before:
                return  # another command opened or removed it meanwhile, or sealed it anew
            ws.sealed.keep(staged, (entry.sha256 for entry in made.values()))
            renamed = _rename(ws, torn, names, made)
    for checkpoint, name, sha256 in renamed:
        yield Repaired(f"checkpoints/{short(checkpoint)}/{name}", f"{found[sha256]}, sealed anew")


def _rename(
    ws: Workspace, torn: Torn, names: Sequence[str], made: Mapping[str, FileEntry]
) -> list[tuple[str, str, str]]:
    """Its seal has the new files, and so have those of others that were sealed with it and share the damaged ones: checkpoint, name and
    content of each."""
    own = torn.manifest.tree
    ws.sealed.change(replace(torn.seal, tree={**torn.seal.tree, **{name: made[own[name].sha256] for name in names}}))
    renamed = [(torn.manifest.id, name, own[name].sha256) for name in names]
    gone = {torn.seal.tree[name]: own[name] for name in names if name in torn.seal.tree}
    for each in sorted(ws.sealed.all()):
        seal = _seal(ws, each)
        if seal is not None and seal.salt == torn.seal.salt and not gone.keys().isdisjoint(seal.tree.values()):
            with contextlib.suppress(Corrupt):  # told with its checkpoint
                theirs = ws.manifest(each).tree
                shared = {name for name, entry in seal.tree.items() if gone.get(entry, "") == theirs.get(name)}
                fresh = {name: made[theirs[name].sha256] for name in shared}
                ws.sealed.change(replace(seal, tree={**seal.tree, **fresh}))
                renamed += [(each, name, theirs[name].sha256) for name in fresh]
    with contextlib.suppress(Corrupt):  # a seal that cannot be read may name them: `gc` looks again when it can
        for sha256 in {entry.sha256 for entry in gone} - ws.sealed.named().keys():
            ws.sealed.path(sha256).unlink(missing_ok=True)
    return renamed
