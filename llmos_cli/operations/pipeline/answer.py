"""What a stage's command answered on stdout: llmos's own JSON, in the shape that is read here. Any other JSON is text, whoever wrote it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field, ValidationError


class _Error(BaseModel):
    message: str
    hint: str | None = None


class _Verdict(BaseModel):
    requirement: str
    reason: str
    passed: bool


class _Measured(BaseModel):
    value: float | None


class _Evaluation(BaseModel):
    rev: str
    metrics: dict[str, _Measured]


class _Answer(BaseModel):
    of: str = Field(alias="schema", pattern=r"^llmos\.")
    error: _Error | None = None
    verdicts: list[_Verdict] = []
    evaluations: list[_Evaluation] = []
    judged: str | None = None
    checkpoint: str | None = None
    run: str | None = None
    name: str | None = None


def parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_one(value) else None


def is_one(value: Any) -> bool:
    """An empty one is that of a command which answered nothing."""
    try:
        return value == {} or bool(_Answer.model_validate(value))
    except ValidationError:
        return False
