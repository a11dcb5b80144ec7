"""Admission: room is taken when a request is let in, and given back whatever becomes of it. The test is the engine here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmos_cli.serve.gateway import Gateway, Limits
from llmos_cli.serve.http import create_app
from llmos_cli.serve.link import Link
from tests.serve.conftest import VOCABULARY, tiny_tokenizer

FACTS = {"kind": "language-model", "task": "causal-lm", "context": 64, "vocabulary": VOCABULARY, "begin": 0}
ROUTES = {
    "/v1/completions": {"prompt": "the cat"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/predict": {"inputs": ["the cat"]},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(chat=True).save_pretrained(directory)
    return directory


@asynccontextmanager
async def served(path: Path, route: str) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """One slot, no queue, and an engine that never answers."""
    ours, theirs = socket.socketpair()
    link = Link(lambda sentence, level: None)
    _, link.writer = await asyncio.open_connection(sock=ours)
    link.facts = FACTS | ({"kind": "classifier", "task": "text-classification"} if route == "/v1/predict" else {})
    gateway = Gateway(link, "tiny", "id", path, Limits(slots=1, queue=0, request_bytes=10_000))
    transport = httpx.ASGITransport(create_app(gateway))
    with theirs:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield gateway, client
        link.writer.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_of_requests_that_come_at_once_only_those_with_room_are_let_in(path: Path, route: str, stream: bool):
    async def scenario() -> tuple[list[int], int]:
        async with served(path, route) as (gateway, client):
            body = ROUTES[route] | ({"stream": True} if stream else {})
            tasks = [asyncio.create_task(client.post(route, json=body)) for _ in range(3)]
            while sum(task.done() for task in tasks) < 2:
                await asyncio.sleep(0.01)
            waiting = [task for task in tasks if not task.done()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            return [task.result().status_code for task in tasks if task not in waiting], gateway.admitted

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == ([429, 429], 0)


def test_a_full_server_reads_no_prompt(path: Path):
    async def scenario() -> dict[str, int]:
        async with served(path, "/v1/completions") as (gateway, client):
            bodies: list[dict[str, Any]] = [{"prompt": [VOCABULARY + 1]}, {"prompt": "the cat", "max_tokens": 100}]
            with gateway.admit(1):
                full = {(await client.post("/v1/completions", json=body)).status_code for body in bodies}
            free = {(await client.post("/v1/completions", json=body)).status_code for body in bodies}
            assert gateway.admitted == 0
            return {"full": full.pop(), "free": free.pop()}

    assert asyncio.run(scenario()) == {"full": 429, "free": 400}
