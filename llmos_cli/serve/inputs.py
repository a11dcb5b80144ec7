"""What a classifier can be asked about: texts, sentences of words, images; anything else is refused before it reaches the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llmos_cli.serve.refusals import ApiError


def check(rows: Sequence[Any], task: str) -> None:
    """400 that names the first row that does not fit the task."""
    fits, expected = FORMS[task]
    for index, row in enumerate(rows):
        if not fits(row):
            raise ApiError(400, f"inputs[{index}] must be {expected}.", param="inputs", code="invalid_value")


def is_text(row: Any) -> bool:
    """A lone surrogate (half an emoji, which JSON can escape) is no text: no tokenizer can encode it."""
    return isinstance(row, str) and not any("\ud800" <= character <= "\udfff" for character in row)


def is_sentence(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(word and is_text(word) for word in row)


def is_image(row: Any) -> bool:
    """`[H][W]` or `[H][W][1 or 3]` bytes."""
    if not is_grid(row):
        return False
    pixels = [pixel for line in row for pixel in line]
    if not isinstance(pixels[0], list):
        return all(is_byte(pixel) for pixel in pixels)
    depth = len(pixels[0])
    return depth in (1, 3) and all(
        isinstance(pixel, list) and len(pixel) == depth and all(map(is_byte, pixel)) for pixel in pixels
    )


def is_grid(row: Any) -> bool:
    if not isinstance(row, list) or not row or not all(isinstance(line, list) for line in row):
        return False
    return len(row[0]) > 0 and all(len(line) == len(row[0]) for line in row)


def is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text-classification": (is_text, "a text"),
    "token-classification": (is_sentence, "a list of words"),
    "image-classification": (is_image, "an image: rows of pixels from 0 to 255, or of their three colours"),
}
"""By task: whether a row fits, and what it must be."""
