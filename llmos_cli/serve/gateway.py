"""The gateway: what the HTTP routes share. Who is served, what may come in, what is being measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from tokenizers import Tokenizer

from llmos_cli.data import tokenizer_config
from llmos_cli.serve.choices import Choice, Piece
from llmos_cli.serve.link import Generation, Link, Wish
from llmos_cli.serve.metrics import Meter
from llmos_cli.serve.refusals import ApiError, busy, unavailable
from llmos_cli.serve.schema import Generating
from llmos_cli.serve.text import load_tokenizer

Answer = TypeVar("Answer")

DEFAULT_TOKENS = 16
"""max_tokens of a completion that does not say, as in the OpenAI API."""


@dataclass(frozen=True)
class Limits:
    slots: int
    queue: int
    request_bytes: int
    max_tokens: int | None = None


@dataclass
class Gateway:
    """`name` is the model's in the API; its `checkpoint` (an id) is known too. `path` is the checkpoint's directory.
    `admitted` counts what has been let in and is not answered yet: generations and questions."""

    link: Link
    name: str
    checkpoint: str
    path: Path
    limits: Limits
    draining: bool = False
    admitted: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.meter = Meter(self.name, self.link)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path)

    @cached_property
    def chats(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return tokenizer_config.has_chat_template(self.path)

    @property
    def generates(self) -> bool:
        return self.link.facts.get("kind") == "language-model"

    @property
    def ready(self) -> bool:
        return self.loaded and not self.draining and not self.link.gone.done()

    @property
    def loaded(self) -> bool:
        return bool(self.link.facts)

    def check(self, model: str | None, *, generates: bool) -> None:
        """Refuse what cannot be answered now, or by this model."""
        if self.draining:
            raise unavailable("The server is shutting down.")
        if not self.loaded:
            raise unavailable("The model is still loading.")
        if self.link.gone.done():
            raise unavailable("The model is not being served any more.", seconds=10)
        if model is not None and model not in (self.name, self.checkpoint):
            raise ApiError(
                404, f"There is no model {model!r} here, only {self.name!r}.", param="model", code="model_not_found"
            )
        if generates != self.generates:
            way = "it classifies: POST /v1/predict" if generates else "it generates text: POST /v1/completions"
            raise ApiError(400, f"The model {self.name!r} cannot do this; {way}.", param="model")

    @contextlib.contextmanager
    def admit(self, requests: int) -> Iterator[None]:
        """Room for this many more while the block runs, or 429. Taken before any work is done, or as many as come at once
        would find the same room free."""
        room = self.limits.slots + self.limits.queue
        if requests > room:
            raise ApiError(400, f"This asks for {requests} generations at once, and {room} are the most.", param="n")
        if self.admitted + requests > room:
            raise busy(f"{self.admitted} requests are being served, and {room} are the most; try again shortly.")
        self.admitted += requests
        try:
            yield
        finally:
            self.admitted -= requests

    def budget(self, prompt: Sequence[int], asked: int | None, *, default: int | None, param: str) -> int:
        """Tokens that may be generated after a prompt."""
        context = int(self.link.facts["context"])
        room = context - len(prompt)
        if asked is None and room < 1:
            raise too_long(f"The prompt has {len(prompt)} tokens, and the model's context is {context}.", param)
        if asked is not None and asked > room:
            raise too_long(
                f"The prompt's {len(prompt)} tokens and max_tokens {asked} exceed the model's context of {context}.",
                param,
            )
        most = self.limits.max_tokens
        if asked is not None and most is not None and asked > most:
            raise ApiError(400, f"max_tokens is {asked}, and {most} is the most here.", param="max_tokens")
        wanted = room if default is None else default
        return min(room, most or room, wanted if asked is None else asked)

    def known(self, tokens: Sequence[int], param: str) -> None:
        vocabulary = int(self.link.facts["vocabulary"])
        if tokens and max(tokens) >= vocabulary:
            raise ApiError(400, f"Token {max(tokens)} is not in the vocabulary of {vocabulary}.", param=param)

    @contextlib.asynccontextmanager
    async def generate(self, wishes: Sequence[Wish]) -> AsyncIterator[Generation]:
        """Generate; the requests of it that are unfinished at the end are counted as aborted."""
        self.meter.read.inc(sum(len(wish.tokens) for wish in wishes))
        async with self.link.generate(wishes) as generation:
            try:
                yield generation
            finally:
                self.meter.finished("abort", len(generation.open))


def too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="context_length_exceeded")


def wishes_of(body: Generating, prompt: Sequence[int], max_tokens: int, *, echo: bool = False) -> list[Wish]:
    return [Wish(prompt, max_tokens, body.sampling(choice), echo) for choice in range(body.n)]


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Stream(StreamingResponse):
    """Server-sent events; what is `held` is let go when the stream ends, even where the client left before it began."""

    def __init__(self, events: AsyncIterator[bytes], held: contextlib.ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.held:
            await super().__call__(scope, receive, send)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer | None:
    """The answer, or None when the client went away first: then the work is cancelled, which frees its slots."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for other in (task, gone):
            other.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def gather(spoken: Sequence[tuple[Choice, Piece]], choice: Choice) -> Piece:
    """All pieces of one choice as one."""
    own = [piece for other, piece in spoken if other is choice]
    tokens = [token for piece in own for token in piece.tokens]
    return Piece("".join(piece.text for piece in own), tokens, own[-1].finish if own else None)
