"""Serving from start to drained: bind, start the engine, answer, and on SIGTERM finish what was begun."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from llmos_cli.errors import Interrupted, LlmosError
from llmos_cli.serve.gateway import Gateway
from llmos_cli.serve.http import create_app
from llmos_cli.serve.link import EngineFailed, Link, Load, Say

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Bound before anything is loaded: a port in use should not cost a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise LlmosError(
                f"port {port} of {host} is in use", hint="choose another with --port, or 0 for a free one"
            ) from error
        raise LlmosError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="127.0.0.1 is this machine alone, 0.0.0.0 every address it has",
        ) from error
    listener.listen(1024)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class Serving:
    """`gateway` makes the shared state around a started link; `ready` is called once the model answers."""

    load: Load
    keys: Collection[str]
    drain_seconds: float
    gateway: Callable[[Link], Gateway]
    ready: Callable[[], None]
    say: Say


def serve(listener: socket.socket, serving: Serving) -> None:
    """Serve until SIGTERM, then drain and return. Raises Interrupted after Ctrl-C (drained too), and an LlmosError where the
    model cannot be loaded or its process dies."""
    try:
        number = asyncio.run(run(listener, serving))
    except EngineFailed as failure:
        error = LlmosError(failure.message, hint=failure.hint)
        error.exit_code = failure.exit_code
        raise error from failure
    if number == signal.SIGINT:
        raise Interrupted("the deployment was interrupted", hint="what was being answered was finished first")


async def run(listener: socket.socket, serving: Serving) -> int:
    """Returns the signal that ended it."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, signals.put_nowait, number)
    link = Link(serving.say)
    await link.start(serving.load)
    gateway = serving.gateway(link)
    server = Server(create_app(gateway, serving.keys))
    answering = asyncio.create_task(server.serve(sockets=[listener]))
    asked: asyncio.Task[int] = asyncio.create_task(signals.get())
    try:
        await first(asked, link.loaded)
        if gateway.ready and not asked.done():
            serving.ready()
        await first(asked, link.gone)
        if asked.done():
            await drain(gateway, serving, signals)
    finally:
        asked.cancel()
        server.should_exit = True
        await answering
        await link.close()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    if (failure := link.gone.result()) is not None:
        raise failure
    return asked.result()


async def first(*waits: asyncio.Future[Any]) -> None:
    """Until one of them is done; its exception is raised."""
    done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


async def drain(gateway: Gateway, serving: Serving, signals: asyncio.Queue[int]) -> None:
    """Accept nothing more and let what is being answered end, for `drain_seconds` or until asked again; the rest is cut off."""
    gateway.draining = True
    serving.say(f"draining: {gateway.admitted} requests in flight", "info")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(serving.drain_seconds):
            while gateway.admitted and signals.empty():
                await asyncio.sleep(0.02)
    if left := gateway.admitted:
        serving.say(f"cut off {left} requests", "warning")


class Server(uvicorn.Server):
    """uvicorn without its own signals: a drained server ends 0, and uvicorn would raise the signal again."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
