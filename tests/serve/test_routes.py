"""What holds for the routes without an engine: keys before all but the open ones, and what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from fastapi.routing import APIRoute

from llmos_cli.serve.choices import Choice, Piece
from llmos_cli.serve.completions import observe
from llmos_cli.serve.gateway import Gateway, Limits
from llmos_cli.serve.http import create_app
from llmos_cli.serve.link import Link
from llmos_cli.serve.metrics import Meter
from tests.serve.conftest import tiny_tokenizer

OPEN = {"/", "/health", "/ready"}


def link() -> Link:
    return Link(lambda sentence, level: None)


def test_every_route_but_the_open_ones_needs_a_key(tmp_path: Path):
    async def scenario() -> dict[str, int]:
        app = create_app(Gateway(link(), "tiny", "id", tmp_path, Limits(1, 0, 1000)), ["sk-known"])
        asked = {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for route in app.routes:
                for method in getattr(route, "methods", None) or ["GET"]:
                    answer = await client.request(method, route.path)  # type: ignore[attr-defined]
                    asked[f"{method} {route.path}"] = answer.status_code  # type: ignore[attr-defined]
            routes = {route.path for route in app.routes if isinstance(route, APIRoute)}
            assert routes > {"/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/predict"}
        return asked

    asked = asyncio.run(scenario())
    assert {name.split()[1] for name, status in asked.items() if status != 401} == OPEN
    assert asked["GET /openapi.json"] == 401


def test_a_method_that_a_route_does_not_take_is_refused_with_the_one_it_takes(tmp_path: Path):
    async def scenario() -> httpx.Response:
        app = create_app(Gateway(link(), "tiny", "id", tmp_path, Limits(1, 0, 1000)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.put("/v1/completions")

    answer = asyncio.run(scenario())
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"] == {
        "message": "/v1/completions does not take PUT, only POST.",
        "type": "invalid_request_error",
        "param": None,
        "code": "method_not_allowed",
    }


def test_the_last_tokens_count_though_they_make_no_text():
    async def scenario() -> bytes:
        meter = Meter("tiny", link())
        watch, choice = meter.watch(), Choice(0, tiny_tokenizer(chat=False).backend_tokenizer, (), [])
        choice.generated = 2
        observe(watch, choice, Piece("the"))
        choice.generated = 5
        observe(watch, choice, Piece("", finish="length"))
        return meter.text()

    assert b'llmos:generation_tokens_total{model_name="tiny"} 5.0' in asyncio.run(scenario())
