"""What a process says while it runs: read from its pipes as it comes, kept in its log, heard, and parsed where it is an answer."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Callable
from typing import Any

from llmos_cli.core.redaction import redacted
from llmos_cli.operations.pipeline import answer
from llmos_cli.operations.pipeline.log import Log

_LOOKING = 0.2
"""Seconds between looks whether a process has ended whose output something else holds open."""
_PIPE = 1 << 20
"""Bytes: as much as a pipe of Linux can hold, so that one read takes all that is there."""
_LINE = 16 << 20
"""Bytes after which a line is passed on though it has no end; an answer of llmos is one line, and shorter."""
_ANSWER = 64 << 20
"""Characters: what is longer is no answer of llmos."""


class Said:
    """What a command says: every line goes to its log and is heard as it comes, but for one JSON document on stdout, its answer."""

    def __init__(self, log: Log, hear: Callable[[str], None]) -> None:
        self._log, self._hear = log, hear
        self._held: list[str] = []
        """Lines of stdout that may be of a document."""
        self._length = 0
        self._is_text = False
        self._last_out = self._last_error = ""

    @property
    def last(self) -> str:
        """What tells best why it failed."""
        return self._last_error or self._last_out

    def error(self, line: str) -> None:
        self._last_error = self._tell(line) or self._last_error

    def out(self, line: str) -> None:
        if not self._is_text and (self._held or line.lstrip().startswith("{")):
            self._held.append(line)
            self._length += len(line)
            if self._length > _ANSWER:
                self._give_up_document()
            return
        self._is_text = self._is_text or bool(line.strip())
        self._last_out = self._tell(line) or self._last_out

    def flush(self) -> None:
        self._log.flush()

    def document(self) -> dict[str, Any]:
        """At its end; what was held for one and is none is told now."""
        found = answer.parsed("\n".join(self._held))
        if found is None:
            self._give_up_document()
        return found or {}

    def _give_up_document(self) -> None:
        held, self._held, self._is_text = self._held, [], True
        for line in held:
            self._last_out = self._tell(line) or self._last_out

    def _tell(self, line: str) -> str:
        line = redacted(line)
        self._log.write(line)
        if told := line.strip():
            self._hear(told)
        return told


def heard_out(process: subprocess.Popen[bytes], said: Said) -> bool:
    """Read stdout and stderr, line by line, until the process has ended and all that it wrote is read; False where something
    else has them open still: what it began in the background is not waited for, as a shell does not either."""
    with selectors.DefaultSelector() as streams:
        for stream, add in ((process.stdout, said.out), (process.stderr, said.error)):
            assert stream is not None, "both are pipes"
            os.set_blocking(stream.fileno(), False)
            streams.register(stream, selectors.EVENT_READ, _Splitter(add))
        ended = False
        while streams.get_map() and not ended:
            ended = process.poll() is not None  # before what is there is read: after its end it wrote nothing more
            ready = streams.get_map().values() if ended else [key for key, _ in streams.select(_LOOKING)]
            for key in list(ready):
                if _is_read(key.fd, key.data, _PIPE if ended else 1):
                    streams.unregister(key.fileobj)
            said.flush()
        left = list(streams.get_map().values())
        for key in left:
            key.data.feed(b"")
    return not left


def _is_read(pipe: int, lines: _Splitter, most: int) -> bool:
    """Whether a pipe has come to its end; read until nothing is there, or `most` bytes and more were."""
    while most > 0:
        try:
            chunk = os.read(pipe, _PIPE)
        except BlockingIOError:
            return False
        lines.feed(chunk)
        if not chunk:
            return True
        most -= len(chunk)
    return False


class _Splitter:
    """Bytes as they come, passed on as lines."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add, self._rest = add, b""

    def feed(self, chunk: bytes) -> None:
        """`chunk`: b"" for the end."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if self._rest and (not chunk or len(self._rest) > _LINE):
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._add(line.decode(errors="replace").rstrip("\r"))
