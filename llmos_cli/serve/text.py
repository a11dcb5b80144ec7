"""Tokens as text while they come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from llmos_cli.errors import LlmosError

BROKEN = "\ufffd"
"""What decoding gives for bytes that are not yet a whole character."""


def load_tokenizer(path: Path) -> Tokenizer:
    """The checkpoint's tokenizer.json, without importing transformers."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise LlmosError(
            f"{path} has no tokenizer.json, which serving text needs",
            hint="save its tokenizer again with transformers' fast tokenizer class",
        )
    return Tokenizer.from_file(str(file))


def spelling(tokenizer: Tokenizer, token: int) -> str:
    """One token alone, special ones by their name."""
    return tokenizer.decode([token], skip_special_tokens=False)


class Detokenizer:
    """Text of a growing list of tokens, piece by piece.

    Decoding token by token breaks characters that several tokens share and spaces that depend on what stands before, so
    the last few tokens are decoded with and without the new one; the difference is the new text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.tokens = list(prompt[-CONTEXT:])
        self.start, self.said = 0, len(self.tokens)

    def add(self, token: int) -> str:
        """The text that became whole with this token, often none."""
        self.tokens.append(token)
        before, after = self.decode(self.tokens[self.start : self.said]), self.decode(self.tokens[self.start :])
        if len(after) <= len(before) or after.endswith(BROKEN):
            return ""
        self.start, self.said = self.said, len(self.tokens)
        return after[len(before) :]

    def rest(self) -> str:
        """What is left when no more tokens come: bytes that never became a character show as U+FFFD."""
        before, after = self.decode(self.tokens[self.start : self.said]), self.decode(self.tokens[self.start :])
        self.start = self.said = len(self.tokens)
        return after[len(before) :]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


CONTEXT = 6
"""Tokens of the prompt that the first generated text is decoded with: enough for any character and its leading space."""


class StopFinder:
    """Passes text through until one of `stops` appears; text that might be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found = False

    def feed(self, text: str) -> str:
        self.held += text
        places = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if places:
            self.found = True
            self.held, free = "", self.held[: min(places)]
            return free
        kept = self.beginning()
        free, self.held = self.held[: len(self.held) - kept], self.held[len(self.held) - kept :]
        return free

    def beginning(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        lengths = range(min(len(self.held), max((len(stop) for stop in self.stops), default=0)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self.held[-n:]) for stop in self.stops)), 0)

    def rest(self) -> str:
        free, self.held = self.held, ""
        return free
