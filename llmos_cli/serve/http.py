"""The HTTP interface: OpenAI's for language models, `/v1/predict` for classifiers, health, readiness, metrics, and a page to try it."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from llmos_cli.serve import refusals
from llmos_cli.serve.chat import chat
from llmos_cli.serve.completions import complete
from llmos_cli.serve.gateway import Gateway, unless_gone
from llmos_cli.serve.guards import Keys, RequestSize
from llmos_cli.serve.inputs import check
from llmos_cli.serve.link import Refused
from llmos_cli.serve.refusals import ApiError
from llmos_cli.serve.schema import ChatBody, CompletionBody, PredictBody

# The page runs no script but its own and talks to nobody but this server.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)


def create_app(gateway: Gateway, keys: Collection[str] = ()) -> FastAPI:
    app = FastAPI(title="llmos", docs_url=None, redoc_url=None)
    refusals.install(app)
    probes(app, gateway)
    generating(app, gateway)
    predicting(app, gateway)
    # The last one added stands outermost: keys are checked before a body is read.
    app.add_middleware(RequestSize, limit=gateway.limits.request_bytes)
    app.add_middleware(Keys, keys=keys)
    return app


def probes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        text = files("llmos_cli.serve").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"})

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = gateway.loaded and not gateway.link.gone.done()
        return JSONResponse({"status": state(gateway)}, status_code=200 if alive else 503)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"status": state(gateway)}, status_code=200 if gateway.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.meter.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(gateway)]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name not in (gateway.name, gateway.checkpoint):
            raise ApiError(404, f"There is no model {name!r} here, only {gateway.name!r}.", code="model_not_found")
        return described(gateway)


def state(gateway: Gateway) -> str:
    if gateway.link.gone.done():
        return "ended"
    return "loading" if not gateway.loaded else "draining" if gateway.draining else "ready"


def described(gateway: Gateway) -> dict[str, Any]:
    return {
        "id": gateway.name,
        "object": "model",
        "created": gateway.created,
        "owned_by": "llmos",
        "root": gateway.checkpoint,
        "task": gateway.link.facts.get("task"),
        "chat": gateway.generates and gateway.chats,
        "max_model_len": gateway.link.facts.get("context"),
    }


def generating(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await complete(gateway, body, request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await chat(gateway, body, request)


def predicting(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/predict")
    async def predict(body: PredictBody, request: Request) -> Response:
        gateway.check(body.model, generates=False)
        check(body.inputs, gateway.link.facts["task"])
        with gateway.admit(1):
            answer = await unless_gone(request, predictions(gateway, body))
        return JSONResponse(answer) if answer is not None else Response(status_code=499)


async def predictions(gateway: Gateway, body: PredictBody) -> dict[str, Any]:
    watch = gateway.meter.watch()
    try:
        answered = await gateway.link.ask("predict", rows=body.inputs)
    except Refused as error:
        raise ApiError(400, str(error), param="inputs") from error
    gateway.meter.predicted.inc(len(answered))
    watch.ended("stop")
    return {"object": "list", "model": gateway.name, "predictions": answered}
