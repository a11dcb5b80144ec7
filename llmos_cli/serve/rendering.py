"""Messages of a chat as tokens, by the checkpoint's own template and transformers' own code.

A template is a program of whoever made the model, in a sandbox that keeps it from the machine but not from its time: it gets a bounded
share of that, or one request would stop all others.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmos_cli.serve.wire import Message

SECONDS = 2.0
"""Of computing; a long conversation takes some hundredths."""

LONGEST = 16 << 20
"""Characters; no context is so long, and to split them into tokens would take long."""


class Unrenderable(Exception):
    """Why in a sentence."""


class ChatTemplate:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokenizer: Any = None

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """Unrenderable where the template raises, or takes too long."""
        from jinja2 import TemplateError

        tokenizer = self._loaded()
        try:
            with _bounded(SECONDS):
                text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TimeoutError:
            raise Unrenderable(f"The chat template did not end within {SECONDS:g} seconds.") from None
        except (TemplateError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as error:
            raise Unrenderable(f"The chat template refuses this: {error}") from error
        if len(text) > LONGEST:
            raise Unrenderable(f"The chat template makes {len(text):,} characters of this.")
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _loaded(self) -> Any:
        if self._tokenizer is None:
            from llmos_cli.data.tokenize import load_tokenizer

            self._tokenizer = load_tokenizer(self._path)
        return self._tokenizer


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds of this process's computing; in its main thread only."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
