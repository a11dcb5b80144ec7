"""The Python language reference by topic, as `help()` shows it: text for language models."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llmos_cli.data import stdlib
from llmos_cli.data.cache import json_entry
from llmos_cli.data.fingerprint import split_of
from llmos_cli.data.rows import Rows

FRACTIONS = {"test": 0.1, "validation": 0.05}
HELD_OUT = ("test", "validation")


def load(cache: Path) -> dict[str, Rows]:
    """One row a topic, in splits by the SHA-256 of its name, without what a held-out topic says too.

    Topics overlap: `compound` is a chapter that holds `while`, `with` and `class` word for word, so that nine tenths of a
    naive held-out split would stand in the training text. Each paragraph stays in one split only: test first.
    """
    from pydoc_data.topics import topics

    pages = sorted(topics.items())
    rows = json_entry(cache, "pydoc", ["pydoc/1", stdlib.identity(pages)], lambda: _all_rows(pages))
    return {split: Rows({"text": [text for name, text in rows if name == split]}) for split in (*HELD_OUT, "train")}


def _all_rows(pages: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(split, text), held-out topics first."""
    splits: dict[str, list[str]] = {name: [] for name in (*HELD_OUT, "train")}
    for topic, text in pages:
        splits[_split(topic)].append(text)
    for name, texts in _apart(splits).items():
        for text in texts:
            yield name, text


def _split(topic: str) -> str:
    return split_of(hashlib.sha256(f"pydoc_data.topics:{topic}".encode()).digest(), FRACTIONS)


def _apart(splits: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Drop from each split the paragraphs that an earlier one holds."""
    seen: set[str] = set()
    apart: dict[str, list[str]] = {}
    for name, texts in splits.items():
        kept = ["\n\n".join(p for p in _paragraphs(text) if _essence(p) not in seen) for text in texts]
        apart[name] = [text for text in kept if text]
        seen.update(_essence(paragraph) for text in texts for paragraph in _paragraphs(text))
    return apart


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in re.split(r"\n[ \t]*\n", text) if paragraph.strip()]


def _essence(paragraph: str) -> str:
    """The words alone: the same paragraph is indented deeper in a longer chapter."""
    return " ".join(re.findall(r"\w+", paragraph.lower()))
