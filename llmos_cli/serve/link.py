"""The gateway's end of the engine: start its process, send it requests, receive their events, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmos_cli.serve import wire
from llmos_cli.serve.wire import Message

Say = Callable[[str, str], None]
"""Called with a sentence and its level (`info`, `warning`)."""


@dataclass(frozen=True)
class Load:
    """What the engine's process is to load; `threads` None: as many as the cores it may use."""

    path: str
    slots: int
    context: int | None
    warm: str
    precision: str = "auto"
    kernels: str = "auto"
    head: str = "keep"
    kv_cache: str = "keep"
    threads: int | None = None


@dataclass(frozen=True)
class Wish:
    """A request to generate, as it travels; `sampling` has the fields of `sampling.Sampling`."""

    tokens: Sequence[int]
    max_tokens: int
    sampling: Message
    echo: bool = False


class EngineFailed(Exception):
    """The engine refused to load, or its process died; `message` is one sentence."""

    def __init__(self, message: str, hint: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message, self.hint, self.exit_code = message, hint, exit_code


SHUTTING_DOWN = ("the server is shutting down", "ask again when it is back")


class Refused(Exception):
    """The engine cannot answer this one request."""


@dataclass
class Link:
    """`facts` are what the engine said of itself when ready; `running`, `waiting`, `usage` its state after its last step."""

    say: Say
    facts: Message = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    usage: float = 0.0

    def __post_init__(self) -> None:
        self.ids = itertools.count(1)
        self.inboxes: dict[int, asyncio.Queue[Any]] = {}
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[EngineFailed | None] = asyncio.get_running_loop().create_future()
        self.last_words: deque[str] = deque(maxlen=1)
        self.closing = False

    async def start(self, load: Load) -> None:
        """Start the process and order it to load; `loaded` is done when it has."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llmos_cli.serve.worker", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the gateway, from the process's first instruction on
            )
        reader, self.writer = await asyncio.open_connection(sock=ours)
        self.tasks = [asyncio.create_task(self.listen(reader)), asyncio.create_task(self.overhear())]
        self.send({"op": "load", **asdict(load)})

    async def close(self) -> None:
        """Close the socket, which ends the process, and wait for it."""
        self.closing = True
        self.writer.close()
        try:
            await asyncio.wait_for(self.process.wait(), timeout=10)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        for task in self.tasks:
            await task

    async def listen(self, reader: asyncio.StreamReader) -> None:
        while (message := await wire.read(reader)) is not None:
            self.take(message)
        if not self.gone.done():
            await self.process.wait()
            self.end(
                None
                if self.closing
                else EngineFailed(
                    self.obituary(), "the deployment's log says more (`llmos logs NAME`); deploy it again"
                )
            )

    async def overhear(self) -> None:
        """What the process prints (warnings of the libraries, a traceback) goes to the log."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if text := line.decode(errors="replace").rstrip():
                self.last_words.append(text)
                self.say(text, "info")

    def take(self, message: Message) -> None:
        match message["op"]:
            case "events":
                self.running, self.waiting = message["running"], message["waiting"]
                self.usage = message["usage"]
                for kind, id, *rest in message["events"]:
                    self.deliver(id, (kind, *rest))
            case "predicted":
                self.deliver(message["id"], message["predictions"])
            case "rendered":
                self.deliver(message["id"], message["tokens"])
            case "refused":
                self.deliver(message["id"], Refused(message["message"]))
            case "note":
                self.say(message["message"], "info")
            case "ready":
                self.facts = message
                self.loaded.set_result(None)
            case "failed":
                self.end(EngineFailed(message["message"], message["hint"], message["exit_code"]))

    def deliver(self, id: int, item: Any) -> None:
        if id in self.inboxes:
            self.inboxes[id].put_nowait((id, item))

    def obituary(self) -> str:
        last = f": {self.last_words[-1]}" if self.last_words else ""
        return f"the engine's process ended (exit {self.process.returncode}){last}"

    def end(self, failure: EngineFailed | None) -> None:
        """Nobody will answer any more: tell all who wait."""
        self.gone.set_result(failure)
        reason = failure or EngineFailed(*SHUTTING_DOWN)
        for inbox in {id(inbox): inbox for inbox in self.inboxes.values()}.values():
            inbox.put_nowait((0, reason))
        if not self.loaded.done():
            self.loaded.set_exception(reason)
            self.loaded.exception()  # it may be that nobody waits for it

    def send(self, message: Message) -> None:
        if not self.gone.done():
            self.writer.write(wire.frame(message))

    @contextlib.asynccontextmanager
    async def generate(self, wishes: Sequence[Wish]) -> AsyncIterator[Generation]:
        """Submit requests that are answered together; whatever is unfinished when the block is left is cancelled."""
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        ids = [next(self.ids) for _ in wishes]
        self.inboxes |= dict.fromkeys(ids, inbox)
        for id, wish in zip(ids, wishes, strict=True):
            self.send({"op": "generate", "id": id, **asdict(wish)})
        generation = Generation(self, ids, inbox)
        try:
            yield generation
        finally:
            for id in generation.open:
                self.send({"op": "cancel", "id": id})
            for id in ids:
                del self.inboxes[id]

    async def ask(self, op: str, **content: Any) -> Any:
        """One question, one answer: `predict` rows, `render` messages."""
        id, inbox = next(self.ids), asyncio.Queue[Any]()
        self.inboxes[id] = inbox
        self.send({"op": op, "id": id, **content})
        answered = False
        try:
            _, answer = await inbox.get()
            answered = True
        finally:
            del self.inboxes[id]
            if not answered:
                self.send({"op": "cancel", "id": id})
        if isinstance(answer, Exception):
            raise answer
        return answer


class Generation:
    """The events of some requests, as `(which, event)`: `which` counts from 0 in the order they were given."""

    def __init__(self, link: Link, ids: Sequence[int], inbox: asyncio.Queue[Any]) -> None:
        self.link, self.inbox = link, inbox
        self.which = {id: index for index, id in enumerate(ids)}
        self.open = set(ids)
        self.ids = ids

    async def __aiter__(self) -> AsyncIterator[tuple[int, tuple[Any, ...]]]:
        while self.open:
            if self.link.gone.done() and self.inbox.empty():
                raise self.link.gone.result() or EngineFailed(*SHUTTING_DOWN)
            id, event = await self.inbox.get()
            if isinstance(event, Exception):
                raise event
            if id not in self.open:
                continue
            if event[0] == "finished":
                self.open.discard(id)
            yield self.which[id], event

    def stop(self, which: int) -> None:
        """No more of this one: its text reached a stop string."""
        id = self.ids[which]
        if id in self.open:
            self.open.discard(id)
            self.link.send({"op": "cancel", "id": id})
