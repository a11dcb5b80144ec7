"""A file that the user wants written (`--junit FILE`, `-o FILE`): whole or not at all, its folder made where there is none.

A link stays, and the file that it leads to is written; so does a device or a pipe (`/dev/stdout`, `>(gzip > x)`), which takes what
it is given as it comes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from llmos_cli.core import atomic, own
from llmos_cli.core.processes import scratch_name
from llmos_cli.errors import LlmosError, UsageError


def require(path: Path) -> None:
    """Before hours of work come to it: UsageError where it cannot be a file of the user's, LlmosError where the system would not write it."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if _is_stream(path):
        return
    own.require_other(path)
    folder = next(each for each in path.absolute().parents if os.path.lexists(each))
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be a file: {folder} is no folder", hint="name a file in a folder")
    with refusals(path):
        probe = folder / scratch_name(".file")
        probe.touch()
        probe.unlink()


def write(path: Path, text: str) -> None:
    with written(path) as file:
        file.write(text)


@contextmanager
def written(path: Path) -> Iterator[TextIO]:
    """To be filled; it appears under its name when all of it is there."""
    if _is_stream(path):
        with _stream(path) as file:
            yield file
        return
    path = path.resolve()
    unfinished = path.parent / scratch_name(".file")
    with refusals(path):
        atomic.make_directory(path.parent)
        file = unfinished.open("w", encoding="utf-8")
    try:
        with atomic.refusals(path), file:
            yield file
        with refusals(path):
            atomic.sync_file(unfinished)
            unfinished.replace(path)
            atomic.sync_directory(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """What is behind `/dev/stdout` may be a file, which others write too."""
    return str(path).startswith("/dev/") or (path.exists() and not path.is_file())


@contextmanager
def _stream(path: Path) -> Iterator[TextIO]:
    """Our own streams as they are: opened anew, a file behind them would be written from its beginning."""
    ours = {"/dev/stdout": sys.stdout, "/dev/stderr": sys.stderr}.get(str(path))
    with refusals(path):
        file = ours or path.open("w", encoding="utf-8")
    with atomic.refusals(path), nullcontext(ours) if ours else file:
        yield file
        file.flush()


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Whatever the system has against it, in a sentence; what a reader at the other end of a pipe did is for `llmos` to know."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        told = LlmosError(f"cannot write {path}: {reason}", hint="name another place")
        raise atomic.refusal(error, path) or told from error
