"""Files of sealed checkpoints: encrypted, and tried before anything relies on it; decrypted, and compared with the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.cipher import PIECE, SALT, Altered, Cipher
from llmos_cli.core.manifest import FileEntry, Manifest
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.store import Heard
from llmos_cli.core.seal import Seal, belongs, name_of
from llmos_cli.core.view import short
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit

_FSCK = "nothing was changed; `llmos fsck` tells what is damaged"


def encrypted(
    ws: Workspace, manifests: Sequence[Manifest], cipher: Cipher, folder: Path, emit: Emit
) -> dict[str, FileEntry]:
    """Each content once, into `folder`, synced and named by what it is then: SHA-256 of the content -> the encrypted file's entry."""
    sources = {e.sha256: (ws.checkpoints / each.id / name, e) for each in manifests for name, e in each.tree.items()}
    return encrypted_files(sources, cipher, folder, emit)


def encrypted_files(
    sources: Mapping[str, tuple[Path, FileEntry]], cipher: Cipher, folder: Path, emit: Emit
) -> dict[str, FileEntry]:
    """As `encrypted`, of contents by their SHA-256: where each is and what it must be."""
    meter = Meter("seal", 2 * sum(entry.size for _, entry in sources.values()), emit)
    with atomic.refusals(folder):
        made = in_parallel(lambda item: _encrypted(*item, cipher, folder, meter.heard), list(sources.values()), meter)
    meter.end()
    return dict(zip(sources, made, strict=True))


def _encrypted(source: Path, entry: FileEntry, cipher: Cipher, folder: Path, heard: Heard) -> FileEntry:
    target = folder / entry.sha256
    with open(target, "xb") as file:
        found = _written(file.write, cipher.encrypted(name_of(entry.sha256), os.urandom(SALT), _heard(source, heard)))
        file.flush()
        os.fsync(file.fileno())
    # What it was made from goes for good: that it can be had back, and is what was saved, is tried and not believed.
    if not opened(target, cipher, entry, heard=heard):
        raise Corrupt(f"{source.name} of {short(source.parent.name)} is not what was saved", hint=_FSCK)
    atomic.read_only(target)
    target.rename(folder / found.sha256)
    return found


def decrypted(ws: Workspace, manifest: Manifest, cipher: Cipher, folder: Path, meter: Meter) -> None:
    """All files of a sealed checkpoint, into `folder`, synced; Corrupt where one is not what the manifest says."""
    seal = seal_of(ws, manifest)

    def one(name: str) -> None:
        with open(folder / name, "xb") as file:
            if not opened(_path(ws, seal, name), cipher, manifest.tree[name], heard=meter.heard, write=file.write):
                raise Corrupt(f"{name} of the sealed {short(manifest.id)} was altered or cut off", hint=_FSCK)
            file.flush()
            os.fsync(file.fileno())
        atomic.read_only(folder / name)

    with atomic.refusals(folder):
        for name in manifest.tree:
            atomic.make_directory((folder / name).parent)
        in_parallel(one, list(manifest.tree), meter)


def seal_of(ws: Workspace, manifest: Manifest) -> Seal:
    """Of a sealed checkpoint; Corrupt where it is not about its files."""
    seal = ws.sealed.seal(manifest.id)
    if not belongs(seal, manifest):
        raise Corrupt(f"the seal of {short(manifest.id)} lists other files than its manifest", hint=_FSCK)
    return seal


def damaged(ws: Workspace, manifest: Manifest, seal: Seal, cipher: Cipher) -> list[str]:
    """Names of a sealed checkpoint's files that are missing, or that this cipher does not open to what the manifest says."""

    def one(name: str) -> bool:
        path = ws.sealed.path(seal.tree[name].sha256)
        return path.is_file() and opened(path, cipher, manifest.tree[name])

    sound = in_parallel(one, list(manifest.tree))
    return [name for name, right in zip(manifest.tree, sound, strict=True) if not right]


def opened(
    path: Path,
    cipher: Cipher,
    entry: FileEntry,
    *,
    heard: Heard = lambda _: None,
    write: Callable[[bytes], object] = lambda _: None,
) -> bool:
    """Whether an encrypted file is that of `entry`; `write` gets its pieces, each authenticated, one after the other."""
    try:
        return _written(write, cipher.decrypted(name_of(entry.sha256), _heard(path, heard))) == entry
    except Altered:
        return False


def _written(write: Callable[[bytes], object], pieces: Iterable[bytes]) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        write(piece)
        size += len(piece)
    return FileEntry(digest.hexdigest(), size)


def _heard(path: Path, heard: Heard) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(PIECE):
            heard(len(chunk))
            yield chunk


def _path(ws: Workspace, seal: Seal, name: str) -> Path:
    path = ws.sealed.path(seal.tree[name].sha256)
    if not path.is_file():
        raise Corrupt(f"{name} of the sealed {short(seal.checkpoint)} is missing", hint=_FSCK)
    return path
