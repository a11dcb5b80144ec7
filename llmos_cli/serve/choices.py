"""A choice: one answer being generated, from the engine's tokens to text with log-probabilities, ends and stop strings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from llmos_cli.serve.link import Generation
from llmos_cli.serve.text import Detokenizer, StopFinder


@dataclass(frozen=True)
class Measured:
    """A token, its log-probability (None: not measured, or the prompt's first) and its likeliest alternatives."""

    token: int
    logprob: float | None
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """Text that is ready to go out, the tokens it was made of, and why the choice ended if it did."""

    text: str
    tokens: Sequence[Measured] = ()
    finish: str | None = None


@dataclass
class Choice:
    """`echoed` is the prompt's text where it is to be repeated before the answer."""

    index: int
    tokenizer: Tokenizer
    prompt: Sequence[int]
    stops: Sequence[str]
    echoed: str | None = None
    generated: int = 0
    done: bool = False
    pending: list[Measured] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.text = Detokenizer(self.tokenizer, self.prompt)
        self.stop = StopFinder(self.stops)

    def feed(self, event: tuple[Any, ...]) -> Piece | None:
        """What one event of the engine adds; None while nothing can be said yet."""
        match event:
            case ("scored", tokens):
                return Piece(self.echo(), [Measured(*token) for token in tokens])
            case ("token", *token):
                return self.token(Measured(*token))
            case ("finished", reason):
                return self.end(reason)
        raise AssertionError(event)

    def echo(self) -> str:
        text, self.echoed = self.echoed or "", None
        return text

    def token(self, measured: Measured) -> Piece | None:
        self.generated += 1
        self.pending.append(measured)
        free = self.echo() + self.stop.feed(self.text.add(measured.token))
        if self.stop.found:
            return self.last(free, "stop")
        return Piece(free, self.take()) if free else None

    def end(self, reason: str) -> Piece:
        free = self.echo() + self.stop.feed(self.text.rest())
        if self.stop.found:
            return self.last(free, "stop")
        return self.last(free + self.stop.rest(), reason)

    def last(self, text: str, reason: str) -> Piece:
        self.done = True
        return Piece(text, self.take(), reason)

    def take(self) -> list[Measured]:
        taken, self.pending = self.pending, []
        return taken


async def pieces(generation: Generation, choices: Sequence[Choice]) -> AsyncIterator[tuple[Choice, Piece]]:
    """What all choices of a request say, in the order it comes."""
    async for which, event in generation:
        choice = choices[which]
        piece = choice.feed(event)
        if choice.done:
            generation.stop(which)
        if piece is not None:
            yield choice, piece


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, int]:
    read, written = sum(len(prompt) for prompt in prompts), sum(choice.generated for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
