"""Downloading: objects stream into `.llmos/tmp/fetch/`, hashed as they come; one that was cut off goes on where it stopped, and one
that arrived is not fetched again. Nothing of it can be seen yet."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, view
from llmos_cli.core.listing import plainly
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import CHUNK
from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.events import Emit

if TYPE_CHECKING:
    from llmos_cli.core.remote.receiving import Receiving
    from llmos_cli.core.workspace import Workspace

FOLDER = "fetch"


def is_under_way(dot: Path) -> bool:
    """Whether a fetch is at it, or was cut off and will go on: what it brings is not all here."""
    return (dot / "tmp" / FOLDER).is_dir()


def receive(ws: Workspace, remote: Remote, receiving: Receiving, emit: Emit) -> None:
    """Download what is missing. Nothing of it can be seen yet."""
    folder = ws.dot / "tmp" / FOLDER
    _check_room(ws, receiving.bytes - _arrived(folder, receiving.objects))
    meter = Meter("fetch", receiving.bytes, emit)
    with atomic.refusals(folder):
        atomic.make_directory(folder)
        in_parallel(lambda item: download(remote, folder, *item, meter), list(receiving.objects.items()), meter)
    meter.end()


def _check_room(ws: Workspace, needed: int) -> None:
    free = shutil.disk_usage(ws.root).free
    if needed > free:
        raise LlmosError(
            f"{view.size(needed)} are to come, and this disk has {view.size(free)} left",
            hint="`llmos gc --dry-run` lists what could go",
        )


def _arrived(folder: Path, objects: Mapping[str, int]) -> int:
    return sum(
        path.stat().st_size for sha256 in objects for path in (folder / sha256, _part(folder / sha256)) if path.exists()
    )


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def download(remote: Remote, folder: Path, sha256: str, size: int, meter: Meter) -> None:
    path = folder / sha256
    if path.exists():
        meter.heard(size)
        return
    resumed = _part(path).exists()
    arrived = _stream(remote, path, sha256, size, meter)
    if not arrived and resumed:
        # What a power cut left of it may be other bytes: once more, from the beginning.
        arrived = _stream(remote, path, sha256, size, meter)
    if not arrived:
        raise Corrupt(
            f"object {sha256[:12]} on {remote.name} is not what its name says",
            hint=hostile.AGAIN,
        )


def _stream(remote: Remote, path: Path, sha256: str, size: int, meter: Meter) -> bool:
    """Append to the part that is there; False, and no part, where the whole is not what it should be."""
    digest, part = hashlib.sha256(), _part(path)
    descriptor = plainly(part, os.O_RDWR | os.O_CREAT)
    with open(descriptor, "r+b") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            meter.heard(len(chunk))
        at = file.tell()
        for chunk in remote.store.chunks(layout.object_name(sha256), at) if at < size else ():
            at += len(chunk)
            if at > size:
                break
            digest.update(chunk)
            file.write(chunk)
            meter.heard(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if at != size or digest.hexdigest() != sha256:
        part.unlink()
        return False
    part.rename(path)
    return True
