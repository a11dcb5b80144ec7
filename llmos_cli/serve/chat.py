"""POST /v1/chat/completions: the same decoding, behind the checkpoint's chat template."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from llmos_cli.serve.choices import Choice, Measured, Piece, pieces, usage
from llmos_cli.serve.completions import observe
from llmos_cli.serve.gateway import DONE, Gateway, Stream, gather, sse, unless_gone, wishes_of
from llmos_cli.serve.link import EngineFailed, Refused
from llmos_cli.serve.refusals import ApiError, of_engine
from llmos_cli.serve.schema import ChatBody
from llmos_cli.serve.text import spelling


async def chat(gateway: Gateway, body: ChatBody, request: Request) -> Response:
    gateway.check(body.model, generates=True)
    if not gateway.chats:
        raise ApiError(
            400,
            f"The model {gateway.name!r} has no chat template; POST /v1/completions continues plain text.",
            code="no_chat_template",
        )
    with contextlib.ExitStack() as held:
        held.enter_context(gateway.admit(body.n))
        job = Chat(gateway, body, await rendered(gateway, body))
        if body.stream:
            return Stream(job.stream(), held.pop_all())
        answer = await unless_gone(request, job.whole())
    return JSONResponse(answer) if answer is not None else Response(status_code=499)


async def rendered(gateway: Gateway, body: ChatBody) -> Sequence[int]:
    try:
        tokens: Sequence[int] = await gateway.link.ask(
            "render", messages=[message.model_dump() for message in body.messages]
        )
    except Refused as error:
        raise ApiError(400, str(error), param="messages") from error
    return tokens


class Chat:
    """One conversation to be answered, `n` times."""

    def __init__(self, gateway: Gateway, body: ChatBody, prompt: Sequence[int]) -> None:
        self.gateway, self.body, self.prompt, self.tokenizer = gateway, body, prompt, gateway.tokenizer
        asked = body.max_completion_tokens or body.max_tokens
        budget = gateway.budget(prompt, asked, default=None, param="messages")
        self.wishes = wishes_of(body, prompt, budget)
        self.choices = [Choice(index, self.tokenizer, (), body.stops) for index in range(body.n)]
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.gateway.name}

    async def whole(self) -> dict[str, Any]:
        spoken = [one async for one in self.speak()]
        listed = []
        for choice in self.choices:
            piece = gather(spoken, choice)
            message = {"role": "assistant", "content": piece.text}
            listed.append(self.worded(choice, piece, message=message))
        return {**self.head("chat.completion"), "choices": listed, "usage": self.usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """The first delta of each choice has the role and no text; the last has the reason it ended."""
        head = self.head("chat.completion.chunk")
        for choice in self.choices:
            opening = self.worded(choice, Piece(""), delta={"role": "assistant", "content": ""})
            yield sse({**head, "choices": [opening]})
        try:
            async for choice, piece in self.speak():
                yield sse({**head, "choices": [self.worded(choice, piece, delta={"content": piece.text})]})
        except EngineFailed as error:
            yield sse(of_engine(error).body())
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield sse({**head, "choices": [], "usage": self.usage()})
        yield DONE

    async def speak(self) -> AsyncIterator[tuple[Choice, Piece]]:
        watch = self.gateway.meter.watch()
        async with self.gateway.generate(self.wishes) as generation:
            async for choice, piece in pieces(generation, self.choices):
                observe(watch, choice, piece)
                yield choice, piece

    def worded(self, choice: Choice, piece: Piece, **said: Any) -> dict[str, Any]:
        logprobs = {"content": [self.logprob(token) for token in piece.tokens]} if self.body.logprobs else None
        return {"index": choice.index, **said, "logprobs": logprobs, "finish_reason": piece.finish}

    def logprob(self, measured: Measured) -> dict[str, Any]:
        top = [self.entry(token, logprob) for token, logprob in measured.top]
        return {**self.entry(measured.token, measured.logprob), "top_logprobs": top}

    def entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = spelling(self.tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def usage(self) -> dict[str, int]:
        return usage([self.prompt], self.choices)
