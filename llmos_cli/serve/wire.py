"""Frames between the gateway and the engine's process: four bytes of length, then JSON. Never a pickle: bytes must not become code."""

from __future__ import annotations

import json
import select
import socket
import struct
from asyncio import IncompleteReadError, StreamReader
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]

LENGTH = struct.Struct("!I")


def frame(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


async def read(reader: StreamReader) -> Message | None:
    """The next message; None when the other side has gone."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return parse(await reader.readexactly(length))
    except (IncompleteReadError, ConnectionResetError):
        return None


def parse(body: bytes) -> Message:
    message: Message = json.loads(body)
    return message


class Channel:
    """The engine's end: blocking, without threads, so that nothing competes with the arithmetic for the interpreter."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray()
        self.open = True

    def send(self, message: Message) -> None:
        try:
            self.connection.sendall(frame(message))
        except (BrokenPipeError, ConnectionResetError):
            self.open = False

    def receive(self, *, wait: bool) -> Iterator[Message]:
        """Every message that has arrived; with `wait`, at least one unless the other side has gone."""
        while self.open and select.select([self.connection], [], [], None if wait and not self.whole() else 0)[0]:
            self.fill()
        while self.whole():
            (length,) = LENGTH.unpack_from(self.buffer)
            body = bytes(self.buffer[LENGTH.size : LENGTH.size + length])
            del self.buffer[: LENGTH.size + length]
            yield parse(body)

    def fill(self) -> None:
        try:
            received = self.connection.recv(1 << 20)
        except ConnectionResetError:
            received = b""
        self.buffer += received
        self.open = bool(received)

    def whole(self) -> bool:
        """Whether the buffer begins with a whole message."""
        if len(self.buffer) < LENGTH.size:
            return False
        return len(self.buffer) >= LENGTH.size + int(LENGTH.unpack_from(self.buffer)[0])
