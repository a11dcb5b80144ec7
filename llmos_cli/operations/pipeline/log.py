"""What a stage's process said last, in a file that stays small: beyond half of `MOST` bytes it goes on in a new one, and the one
before is kept as `<name>.txt.1`.

A log that cannot be written is told, once, and ends nothing: the stage may not need the room that there is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.listing import plainly

MOST = 32 << 20


class Log:
    """`hear`: is told why nothing more is kept. Lines are written when `flush` is called."""

    def __init__(self, path: Path, hear: Callable[[str], None], *, most: int = MOST) -> None:
        self._path, self._hear, self._half = path, hear, most // 2
        self._waiting = bytearray()
        self._file: int | None = None
        self._size = 0

    def __enter__(self) -> Log:
        with self._or_no_more():
            atomic.make_directory(self._path.parent)
            before(self._path).unlink(missing_ok=True)
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._close()

    def write(self, line: str) -> None:
        self._waiting += line.encode(errors="replace") + b"\n"

    def flush(self) -> None:
        said, self._waiting = bytes(self._waiting), bytearray()
        with self._or_no_more():
            for at in range(0, len(said), self._half):
                self._append(said[at : at + self._half])

    def _append(self, data: bytes) -> None:
        if self._file is not None and self._size and self._size + len(data) > self._half:
            self._turn()
        if self._file is not None:
            atomic.write_all(self._file, data)
            self._size += len(data)

    def _turn(self) -> None:
        self._close()
        self._path.replace(before(self._path))
        self._open()

    def _open(self) -> None:
        self._file, self._size = plainly(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextmanager
    def _or_no_more(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._close()
            reason = atomic.refusal(error, self._path)
            self._hear(f"what it says is not kept: {reason.message if reason else error}")


def before(path: Path) -> Path:
    """Where what a log held is kept when it goes on in a new file."""
    return path.with_name(f"{path.name}.1")
