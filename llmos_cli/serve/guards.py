"""What stands before every route: keys, and the size of requests. Plain ASGI, so that streams and disconnects pass untouched."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmos_cli.core import urls
from llmos_cli.errors import NotFound, Untrusted, UsageError
from llmos_cli.serve.refusals import CODES, ApiError

OPEN = frozenset({"/", "/health", "/ready"})
"""Routes that need no key: a probe has none, and the page asks for one."""
DRAINED = 16 * 2**20
"""Bytes of a refused body that are read and dropped: closing on a client that is still sending resets its connection, and the
refusal is lost. A client that sends more has to live with that."""


def read_keys(file: str | None) -> frozenset[str]:
    """Keys from a file (one a line; a line that begins with `#` is a comment) and from LLMOS_API_KEYS (separated by commas)."""
    keys = [key.strip() for key in os.environ.get("LLMOS_API_KEYS", "").split(",")]
    if file is not None:
        keys += _keys_of(urls.path(file))
    return frozenset(key for key in keys if key)


def _keys_of(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            # Of the file that is open: the path may name another one by now.
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Untrusted(f"the API key file {path} can be read by others", hint=f"chmod 600 {path}")
            lines = [line.strip() for line in file]
    except (UnicodeDecodeError, IsADirectoryError):
        raise UsageError(f"the API key file {path} is not a text file", hint="write one key a line") from None
    except FileNotFoundError:
        raise NotFound(f"the API key file {path} does not exist", hint="write one key a line, and chmod 600") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"the API key file {path} holds no key", hint="write one a line")
    return keys


class Keys:
    """Every route but the open ones needs `Authorization: Bearer KEY`. Compared as hashes in constant time, all of them:
    neither a key's length nor how much of it was right shows in the time taken."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app = app
        self.digests = [digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and self.digests and scope["path"] not in OPEN
        if guarded and not self.allows(dict(scope["headers"]).get(b"authorization", b"")):
            message = "This needs an API key: send `Authorization: Bearer KEY` with one that is known here."
            error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
            await refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def allows(self, header: bytes) -> bool:
        scheme, _, given = header.partition(b" ")
        offered = hashlib.sha256(given.strip()).digest()
        matches = [hmac.compare_digest(offered, known) for known in self.digests]
        return scheme.lower() == b"bearer" and any(matches)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without having looked at the body."""
    await drain(receive, {"type": "http.request", "more_body": True})
    await error.response()(scope, receive, send)


async def drain(receive: Receive, message: Message) -> None:
    """Read on from `message` to the end of the body, or to DRAINED bytes."""
    dropped = 0
    while message["type"] == "http.request" and message.get("more_body", False) and dropped < DRAINED:
        message = await receive()
        dropped += len(message.get("body", b""))


class RequestSize:
    """413 for bodies of more than `limit` bytes, announced or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit:
            await refuse(self.refusal(), scope, receive, send)
            return
        await self.app(scope, self.counted(receive), send)

    def counted(self, receive: Receive) -> Receive:
        total = 0

        async def counting() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self.limit:
                await drain(receive, message)
                # FastAPI is reading the body: this kind of exception passes through it.
                raise HTTPException(413, self.refusal().message, headers={"Connection": "close"})
            return message

        return counting

    def refusal(self) -> ApiError:
        message = f"The request is larger than {self.limit} bytes."
        return ApiError(413, message, code=CODES[413], headers={"Connection": "close"})
