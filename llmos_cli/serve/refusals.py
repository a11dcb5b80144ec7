"""Errors as the OpenAI API words them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from llmos_cli.serve.link import EngineFailed, Refused

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

CODES = {413: "request_too_large"}


class ApiError(Exception):
    """One sentence for the caller, the request's field it is about, and a code that programs can compare."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def busy(message: str, *, seconds: int = 1) -> ApiError:
    return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})


def unavailable(message: str, *, seconds: int = 2) -> ApiError:
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(seconds)})


def install(app: FastAPI) -> None:
    """Every error leaves in this shape, FastAPI's own included."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return validation(error).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return ApiError(404, f"There is no {request.method} {request.url.path} here.", code="not_found").response()
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            message = f"{request.url.path} does not take {request.method}, only {allowed}."
            return ApiError(405, message, code="method_not_allowed", headers=error.headers).response()
        code = CODES.get(error.status_code)
        return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers).response()

    @app.exception_handler(EngineFailed)
    async def dead(request: Request, error: EngineFailed) -> JSONResponse:
        return of_engine(error).response()

    @app.exception_handler(Refused)
    async def declined(request: Request, error: Refused) -> JSONResponse:
        return of_engine(error).response()


def of_engine(error: EngineFailed | Refused) -> ApiError:
    if isinstance(error, Refused):
        return ApiError(400, str(error))
    return unavailable(f"The model is not being served any more: {error.message}.")


def validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, naming its field."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not JSON: {first['ctx']['error']}.", code="invalid_json")
    # Members of a union are named in the location too; only the body's own keys and indices mean something to the caller.
    place = [str(part) for part in first["loc"][1:2]]
    param = ".".join(place) or None
    if first["type"] == "missing":
        return ApiError(400, f"{param or 'The body'} is missing.", param=param, code="missing")
    if param is None and first["type"] != "value_error":
        message = "The body is not a JSON object; send one, with the header `Content-Type: application/json`."
        return ApiError(400, message, code="invalid_json")
    reason = str(first["msg"]).removeprefix("Value error, ")
    between = " " if reason.startswith("must ") else ": "
    message = f"{param}{between}{reason}." if param else f"{reason[:1].upper()}{reason[1:]}."
    return ApiError(400, message, param=param, code="invalid_value")
