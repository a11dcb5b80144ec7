"""Files of lines that only ever grow: each line is on disk before anybody goes on, and none is glued to one that a crash cut off."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.listing import plainly, read_bytes


def append(path: Path, line: bytes) -> None:
    """`line` with its end."""
    first = not path.exists()
    start = b"" if end(path, 1) in (b"", b"\n") else b"\n"
    with atomic.refusals(path):
        descriptor = plainly(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            atomic.write_all(descriptor, start + line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if first:
            atomic.sync_directory(path.parent)


def read(path: Path) -> list[bytes]:
    """Without their ends; the last one is empty, unless a crash cut it off. None of a file that is not there."""
    return text.split(b"\n") if (text := whole(path)) is not None else []


def whole(path: Path) -> bytes | None:
    """None of a file that is not there."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        return None


def start(path: Path) -> bytes:
    """The first line, with its end; nothing of a file that is not there."""
    try:
        with open(path, "rb", opener=plainly) as file:
            return file.readline()
    except FileNotFoundError:
        return b""


def end(path: Path, size: int) -> bytes:
    """The last `size` bytes; nothing of a file that is not there."""
    try:
        with open(path, "rb", opener=plainly) as file:
            file.seek(max(os.fstat(file.fileno()).st_size - size, 0))
            return file.read()
    except FileNotFoundError:
        return b""


def backwards(path: Path) -> Iterator[bytes]:
    """All lines, the last one first, without their ends; none of a file that is not there. What is not asked for is not even read."""
    text = _mapped(path)
    end = len(text)
    while (start := text.rfind(b"\n", 0, end)) >= 0:
        yield text[start + 1 : end]
        end = start
    if len(text):
        yield text[:end]


def holding(path: Path, marked: bytes) -> Iterator[bytes]:
    """Lines that have `marked` in them, the last one first, without their ends; none of a file that is not there. What is not asked for
    is not even read."""
    text = _mapped(path)
    at = text.rfind(marked)
    while at >= 0:
        start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        yield text[start : end if end >= 0 else len(text)]
        at = text.rfind(marked, 0, start)


def matching(path: Path, pattern: bytes) -> Iterator[bytes]:
    """Lines in which a regular expression, which matches no end of a line, finds something: the first one first, without their ends; none
    of a file that is not there."""
    text = _mapped(path)
    at = 0
    while (found := re.compile(pattern).search(text, at)) is not None:
        start, end = text.rfind(b"\n", 0, found.start()) + 1, text.find(b"\n", found.end())
        at = end if end >= 0 else len(text)
        yield text[start:at]


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The file, of which only that is read which is looked at."""
    try:
        with open(path, "rb", opener=plainly) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):  # ValueError: it is empty
        return b""
