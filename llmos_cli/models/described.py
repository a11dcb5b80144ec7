"""What a folder that anybody may have made says of its model, in its small JSON files: read within bounds, before transformers reads it.

transformers believes what stands there: it makes a name for each of `num_labels`, a module for each of `num_hidden_layers`, and
takes memory for every size. So what no model has is refused here, and what its own files of weights do not hold is in `fits`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from llmos_cli.errors import UNREADABLE, Corrupt

_AGAIN = "copy or download the folder again"
_LARGEST = 256 << 20
"""Bytes: tokenizers of a million words are a tenth of that."""
_DEEPEST = 100
_SIDE = 1 << 31
_COUNTS = {
    re.compile(r"labels$"): 1_000_000,
    re.compile(r"(layers?|depths?|blocks|stages)$"): 1000,
    re.compile(r"experts$"): 10_000,
}
"""What is made one by one, by the ends of the names that configs give it; a hundred times as many as models have."""
_PARTS = re.compile(r"^(num|n)_|depths?$")
"""Of these a list counts the parts of one whole (stages of a network); others number things, as those layers that are alike."""
_SIDES = re.compile(r"(size|sizes|dim|dims|heads|channels|width|widths|embd|inner|hidden|model)$")
_SPARE = 100_000_000
"""Weights that a model may have beyond those of its files: a new head, embeddings that it shares with another."""

_TRIPS = (
    *(*UNREADABLE, LookupError, ArithmeticError, OSError, RuntimeError, AssertionError, MemoryError, ImportError),
    *(struct.error, StrictDataclassError, SafetensorError),
)
"""What libraries raise over what they believed."""


@contextmanager
def believed(trouble: str, *, hint: str = _AGAIN) -> Iterator[None]:
    """Around transformers' and torch's reading of a stranger's files: Corrupt, with `trouble` and their reason, where they trip over
    what stands there. They check little themselves, so which of the many things that nobody would write is met is theirs to find."""
    try:
        yield
    except _TRIPS as problem:
        raise Corrupt(f"{trouble}: {told(problem)}", hint=hint) from problem


def told(problem: BaseException) -> str:
    """Its first words, as a part of a sentence."""
    if isinstance(problem, RecursionError):
        return "brackets within brackets"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    words = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    words = f"{type(problem).__name__} {words}" if isinstance(problem, LookupError) else words
    return plain(words) or type(problem).__name__


def plain(text: str) -> str:
    """What a stranger wrote, as a part of a sentence: a terminal obeys some characters."""
    return "".join(each if each.isprintable() else " " for each in text[:160]).strip()


def read(file: Path) -> Any:
    """The value of a JSON file; Corrupt where it is none, or larger or nested deeper than any is."""
    bounded(file)
    try:
        value = json.loads(file.read_bytes())
    except UNREADABLE as problem:
        raise Corrupt(f"{file} is not JSON: {told(problem)}", hint=_AGAIN) from problem
    if _is_deeper(value, _DEEPEST):
        raise Corrupt(f"{file} is nested more than {_DEEPEST} deep", hint=_AGAIN)
    return value


def bounded(file: Path) -> None:
    """Corrupt where a file beside the weights is larger than any such file is: it would be copied, and read as a whole."""
    if (size := file.stat().st_size) > _LARGEST:
        raise Corrupt(f"{file} has {size:,} bytes, more than such a file needs", hint=_AGAIN)


def table(file: Path) -> dict[str, Any]:
    """The same, of a file that names its values: all do that stand beside weights."""
    value = read(file)
    if not isinstance(value, dict):
        raise Corrupt(f"{file} is no table of names and values", hint=_AGAIN)
    return value


def sizes(file: Path, config: Mapping[str, Any]) -> None:
    """Corrupt where a number in it is larger than that of any model."""
    for name, value in _numbers(config):
        limits = [most for ends, most in _COUNTS.items() if ends.search(name)]
        limits += [_SIDE] if _SIDES.search(name) else []
        if limits and not abs(value) <= min(limits):
            raise Corrupt(f"{file} says {plain(name)} is {plain(str(value))}, which no model has", hint=_AGAIN)


def fits(file: Path, model: Any, stored: int) -> None:
    """Corrupt where `model` (a PreTrainedModel without memory), as `file` describes it, has no layers, or many more weights than the
    `stored` ones."""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers < 1:
        raise Corrupt(f"{file} describes a model of {layers} layers", hint=_AGAIN)
    weights = sum(weight.numel() for weight in model.parameters())
    if weights > 2 * stored + _SPARE:
        raise Corrupt(f"{file} describes {weights:,} weights, and the files hold {stored:,}", hint=_AGAIN)


def _is_deeper(value: Any, depth: int) -> bool:
    """Level by level: a function that calls itself would be as deep."""
    level = [value]
    for _ in range(depth + 1):
        level = [item for each in level for item in _inside(each)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All that are said, under the nearest name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, str(key))
    elif isinstance(value, list):
        if _PARTS.search(name) and all(isinstance(item, int) for item in value):
            yield name, sum(value)
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
