"""The engine: continuous batching. Requests join and leave between steps; every step computes all of them together.

Rows in use are always `0 ... n - 1` of the decoder's cache: when a request leaves, the last row moves into its place, so that
a batch is a slice and never a gather. A step computes one chunk of waiting prompts, then one token for each stream.

    engine.submit(Request(1, tokens=(5, 7), max_tokens=20))
    while engine.busy:
        for event in engine.step(): ...

Tokens in, tokens out: text, stop strings and HTTP are the gateway's.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmos_cli.serve.decoder import Decoder, pad
from llmos_cli.serve.sampling import GREEDY, Drawn, Sampling, draw, measure, penalise

CHUNK = 256
"""Prompt tokens of one row computed in a step: longer prompts take several, so that running streams never wait long."""

BUDGET = 1024
"""Prompt tokens of all rows computed in a step, padding included."""


@dataclass(frozen=True)
class Request:
    """`echo`: also report the log-probabilities of the prompt's tokens. `max_tokens` 0 scores the prompt and generates nothing."""

    id: int
    tokens: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    echo: bool = False


@dataclass(frozen=True)
class Scored:
    """The prompt's tokens with their log-probabilities; the first has none."""

    id: int
    tokens: list[Drawn]


@dataclass(frozen=True)
class Token:
    id: int
    drawn: Drawn


@dataclass(frozen=True)
class Finished:
    """`reason`: `stop` at an end token, `length` at max_tokens or the context's end."""

    id: int
    reason: str


Event = Scored | Token | Finished


@dataclass
class Row:
    """A request being computed: `tokens` so far, of which `cached` are in the decoder's cache."""

    request: Request
    generator: random.Random
    tokens: list[int]
    cached: int = 0
    prompt_scores: list[Drawn] = field(default_factory=list)
    finished: str = ""

    @property
    def prompt_length(self) -> int:
        return len(self.request.tokens)

    @property
    def prefilling(self) -> bool:
        return self.cached < self.prompt_length

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_length :]


class Engine:
    def __init__(self, decoder: Decoder, *, end_tokens: Iterable[int] = ()) -> None:
        self.decoder = decoder
        self.end_tokens = frozenset(end_tokens)
        self.rows: list[Row] = []
        self.queue: deque[Request] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.queue)

    @property
    def cache_usage(self) -> float:
        """Share of the cache's positions that hold a token."""
        return sum(row.cached for row in self.rows) / (self.decoder.slots * self.decoder.context)

    def submit(self, request: Request) -> None:
        assert request.tokens and len(request.tokens) <= self.decoder.context
        self.queue.append(request)

    def cancel(self, id: int) -> None:
        self.queue = deque(request for request in self.queue if request.id != id)
        for row in self.rows:
            if row.request.id == id:
                row.finished = "cancelled"
        self.leave()

    def step(self) -> list[Event]:
        self.admit()
        events = [*self.prefill(), *self.decode()]
        self.leave()
        return events

    def admit(self) -> None:
        while self.queue and len(self.rows) < self.decoder.slots:
            request = self.queue.popleft()
            self.rows.append(Row(request, random.Random(request.sampling.seed), list(request.tokens)))

    def prefill(self) -> list[Event]:
        """One chunk of the oldest waiting prompts: rows that stand next to each other, as many as the budget holds."""
        first, last = self.next_prompts()
        if first == last:
            return []
        group = self.rows[first:last]
        chunks = [row.tokens[row.cached : min(row.cached + CHUNK, row.prompt_length)] for row in group]
        positions = [list(range(row.cached, row.cached + len(chunk))) for row, chunk in zip(group, chunks, strict=True)]
        every = any(row.request.echo for row in group)
        logits = self.decoder.forward(pad(chunks, 0), pad(positions, -1), first, every=every)
        if every:
            for row, chunk, logits_LV in zip(group, chunks, logits, strict=True):
                score_prompt(row, len(chunk), logits_LV)
            logits = torch.stack([logits_LV[len(chunk) - 1] for logits_LV, chunk in zip(logits, chunks, strict=True)])
        for row, chunk in zip(group, chunks, strict=True):
            row.cached += len(chunk)
        return self.after_prompt(group, logits)

    def next_prompts(self) -> tuple[int, int]:
        first = next((index for index, row in enumerate(self.rows) if row.prefilling), len(self.rows))
        last, width = first, 0
        while last < len(self.rows) and self.rows[last].prefilling:
            width = max(width, min(CHUNK, self.rows[last].prompt_length - self.rows[last].cached))
            if last > first and width * (last - first + 1) > BUDGET:
                break
            last += 1
        return first, last

    def after_prompt(self, group: list[Row], logits_BV: Tensor) -> list[Event]:
        """Rows whose prompt is complete draw their first token."""
        ready = [index for index, row in enumerate(group) if not row.prefilling]
        events: list[Event] = [
            Scored(row.request.id, row.prompt_scores) for row in (group[index] for index in ready) if row.request.echo
        ]
        for row in (group[index] for index in ready):
            if row.request.max_tokens == 0:
                events.append(finish(row, "length"))
        ready = [index for index in ready if not group[index].finished]
        if not ready:
            return events
        return [*events, *self.advance([group[index] for index in ready], logits_BV[ready])]

    def decode(self) -> list[Event]:
        """One token for each stream. Rows still at their prompt ride along as padding, so that the batch stays a slice."""
        streams = [index for index, row in enumerate(self.rows) if self.streaming(row)]
        if not streams:
            return []
        rows = self.rows[: streams[-1] + 1]
        tokens = [row.tokens[-1] if self.streaming(row) else 0 for row in rows]
        positions = [row.cached if self.streaming(row) else -1 for row in rows]
        logits_BV = self.decoder.forward(
            torch.tensor(tokens)[:, None], torch.tensor(positions)[:, None], 0, every=False
        )
        for index in streams:
            self.rows[index].cached += 1
        chosen_BV = logits_BV if len(streams) == len(rows) else logits_BV[streams]
        return self.advance([self.rows[index] for index in streams], chosen_BV)

    def streaming(self, row: Row) -> bool:
        return not row.prefilling and not row.finished and row.cached < len(row.tokens)

    def advance(self, rows: list[Row], logits_BV: Tensor) -> list[Event]:
        """Draw a token for each row and see whether it is the row's last."""
        for row, logits_V in zip(rows, logits_BV, strict=True):
            penalise(logits_V, row.generated, row.request.sampling)
        drawn = draw(logits_BV, [row.request.sampling for row in rows], [row.generator.random() for row in rows])
        return [event for row, one in zip(rows, drawn, strict=True) for event in self.take(row, one)]

    def take(self, row: Row, drawn: Drawn) -> list[Event]:
        if drawn.token in self.end_tokens:
            return [finish(row, "stop")]
        row.tokens.append(drawn.token)
        events: list[Event] = [Token(row.request.id, drawn)]
        full = len(row.tokens) >= self.decoder.context
        if full or len(row.tokens) - row.prompt_length >= row.request.max_tokens:
            events.append(finish(row, "length"))
        return events

    def leave(self) -> None:
        """Free the rows of finished requests; the last row moves into each hole."""
        for index in reversed(range(len(self.rows))):
            if not self.rows[index].finished:
                continue
            last = self.rows.pop()
            if index < len(self.rows):
                self.rows[index] = last
                self.decoder.move(len(self.rows), index)


def finish(row: Row, reason: str) -> Finished:
    row.finished = reason
    return Finished(row.request.id, reason)


def score_prompt(row: Row, length: int, logits_LV: Tensor) -> None:
    """Position i's logits score token i + 1; a chunk's last position scores the next chunk's first token."""
    if not row.request.echo:
        return
    if row.cached == 0:
        row.prompt_scores.append(Drawn(row.tokens[0]))
    scored = row.tokens[row.cached + 1 : min(row.cached + length + 1, row.prompt_length)]
    count = row.request.sampling.logprobs or 0
    if scored:
        row.prompt_scores += measure(
            logits_LV[: len(scored)], torch.tensor(scored, device=logits_LV.device), [count] * len(scored)
        )
