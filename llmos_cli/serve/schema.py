"""Bodies of requests, as the OpenAI API and ours define them. Unknown fields are ignored; those that would change the answer and
are not supported are refused rather than dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from llmos_cli.serve.inputs import is_text

Tokens = list[int]
Prompt = str | Tokens | list[str] | list[Tokens]


def of_prompt(value: Any) -> Any:
    """One sentence instead of pydantic's four, one for each member of the union."""
    if is_text(value) or is_tokens(value):
        return value
    if isinstance(value, list) and (all(map(is_text, value)) or all(map(is_tokens, value))):
        return value
    raise ValueError("must be a text, a list of texts, token ids, or a list of those")


def of_content(value: Any) -> Any:
    """The text of a message: as it is, or put together of its parts, which clients send even where there is but one."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    raise ValueError("must be a text, or a list of parts of type text: this model reads nothing else")


def is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


MAX_LOGPROBS = 20


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class Generating(Body):
    """What completions and chats share."""

    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("stop")
    @classmethod
    def few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > 16:
            raise ValueError("at most 16 stop strings")
        return value

    @field_validator("logit_bias")
    @classmethod
    def no_bias(cls, value: dict[str, float] | None) -> None:
        if value:
            raise ValueError("logit_bias is not supported here")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def alternatives(self) -> int | None:
        """How many likeliest tokens to report with each one; None for no log-probabilities."""
        raise NotImplementedError

    def sampling(self, choice: int) -> dict[str, Any]:
        """For the engine; choices of one seeded request draw differently."""
        return {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p or 1.0,
            "seed": None if self.seed is None else self.seed + choice,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logprobs": self.alternatives,
        }


class CompletionBody(Generating):
    prompt: Annotated[Prompt, BeforeValidator(of_prompt)]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def supported(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != self.n:
            raise ValueError("best_of is not supported here other than equal to n")
        if self.suffix:
            raise ValueError("suffix is not supported here")
        return self

    @property
    def alternatives(self) -> int | None:
        return self.logprobs


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: str
    content: Annotated[str, BeforeValidator(of_content)]


class ResponseFormat(BaseModel):
    type: Literal["text"]


class ChatBody(Generating):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None

    @field_validator("tools")
    @classmethod
    def no_tools(cls, value: list[Any] | None) -> None:
        if value:
            raise ValueError("tools are not supported here")

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class PredictBody(Body):
    """`inputs`: texts, sentences as lists of words, or images as nested lists of numbers, by the model's task."""

    inputs: list[Any] = Field(min_length=1, max_length=1024)
