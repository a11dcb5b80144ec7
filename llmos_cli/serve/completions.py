"""POST /v1/completions: text after text, whole or as a stream."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from llmos_cli.serve.choices import Choice, Measured, Piece, pieces, usage
from llmos_cli.serve.gateway import DEFAULT_TOKENS, DONE, Gateway, Stream, gather, sse, unless_gone, wishes_of
from llmos_cli.serve.link import EngineFailed, Wish
from llmos_cli.serve.metrics import Watch
from llmos_cli.serve.refusals import ApiError, of_engine
from llmos_cli.serve.schema import CompletionBody
from llmos_cli.serve.text import spelling


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: Sequence[int]


async def complete(gateway: Gateway, body: CompletionBody, request: Request) -> Response:
    gateway.check(body.model, generates=True)
    with contextlib.ExitStack() as held:
        held.enter_context(gateway.admit(len(several(body.prompt)) * body.n))
        job = Completion(gateway, body)
        if body.stream:
            return Stream(job.stream(), held.pop_all())
        answer = await unless_gone(request, job.whole())
    return JSONResponse(answer) if answer is not None else Response(status_code=499)


class Completion:
    """One request: its prompts, `n` choices of each, and how they are worded."""

    def __init__(self, gateway: Gateway, body: CompletionBody) -> None:
        self.gateway, self.body, self.tokenizer = gateway, body, gateway.tokenizer
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": gateway.name,
        }
        self.prompts = [self.prompt(one) for one in several(body.prompt)]
        scored = body.echo and body.logprobs is not None
        self.wishes: list[Wish] = []
        self.choices: list[Choice] = []
        for prompt in self.prompts:
            budget = gateway.budget(prompt.tokens, body.max_tokens, default=DEFAULT_TOKENS, param="prompt")
            for wish in wishes_of(body, prompt.tokens, budget, echo=scored):
                self.wishes.append(wish)
                self.choices.append(self.choice(prompt))
        self.offsets = [0] * len(self.choices)

    def prompt(self, given: str | list[int]) -> Prompt:
        if isinstance(given, str):
            tokens = self.tokenizer.encode(given).ids or self.beginning()
            return Prompt(given, tokens)
        self.gateway.known(given, "prompt")
        return Prompt(self.tokenizer.decode(given, skip_special_tokens=True), given or self.beginning())

    def beginning(self) -> list[int]:
        """What an empty prompt stands for: the token that begins, or separates, texts."""
        start = self.gateway.link.facts["begin"]
        if start is None:
            raise ApiError(400, "The prompt is empty.", param="prompt", code="empty_prompt")
        return [start]

    def choice(self, prompt: Prompt) -> Choice:
        echoed = prompt.text if self.body.echo else None
        return Choice(len(self.choices), self.tokenizer, prompt.tokens, self.body.stops, echoed)

    async def whole(self) -> dict[str, Any]:
        spoken = [one async for one in self.speak()]
        listed = [self.worded(choice, gather(spoken, choice)) for choice in self.choices]
        return {**self.head, "choices": listed, "usage": self.usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            async for choice, piece in self.speak():
                yield sse({**self.head, "choices": [self.worded(choice, piece)]})
        except EngineFailed as error:
            yield sse(of_engine(error).body())
            return
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield sse({**self.head, "choices": [], "usage": self.usage()})
        yield DONE

    async def speak(self) -> AsyncIterator[tuple[Choice, Piece]]:
        watch = self.gateway.meter.watch()
        async with self.gateway.generate(self.wishes) as generation:
            async for choice, piece in pieces(generation, self.choices):
                observe(watch, choice, piece)
                yield choice, piece

    def worded(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        logprobs = None if self.body.logprobs is None else self.logprobs(choice, piece.tokens)
        return {"index": choice.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}

    def logprobs(self, choice: Choice, tokens: Sequence[Measured]) -> dict[str, Any]:
        spelled = [spelling(self.tokenizer, measured.token) for measured in tokens]
        offsets = []
        for text in spelled:
            offsets.append(self.offsets[choice.index])
            self.offsets[choice.index] += len(text)
        return {
            "tokens": spelled,
            "token_logprobs": [measured.logprob for measured in tokens],
            "top_logprobs": [self.top(measured) for measured in tokens],
            "text_offset": offsets,
        }

    def top(self, measured: Measured) -> dict[str, float] | None:
        """Likeliest first, the chosen token always among them."""
        if measured.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in [*measured.top, (measured.token, measured.logprob)]:
            found.setdefault(spelling(self.tokenizer, token), logprob)
        return found

    def usage(self) -> dict[str, int]:
        return usage([prompt.tokens for prompt in self.prompts], self.choices)


def several(prompt: Any) -> list[Any]:
    """One prompt or many, text or tokens: always a list of them."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise ApiError(400, "The prompt is empty.", param="prompt", code="empty_prompt")
    return list(prompt)


def observe(watch: Watch, choice: Choice, piece: Piece) -> None:
    if piece.text or piece.finish:  # an answer's last tokens may make no text
        watch.spoke(choice.index, choice.generated)
    if piece.finish:
        watch.ended(piece.finish)
