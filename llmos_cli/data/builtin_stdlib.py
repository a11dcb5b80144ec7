"""The standard library's source files: text for language models."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmos_cli.data import stdlib
from llmos_cli.data.fingerprint import split_of
from llmos_cli.data.rows import Rows

FRACTIONS = {"test": 0.05, "validation": 0.05}


def load(cache: Path) -> dict[str, Rows]:
    """One row a file, in splits by the SHA-256 of its path."""
    texts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for path, text in stdlib.files():
        texts[split_of(hashlib.sha256(path.encode()).digest(), FRACTIONS)].append(text)
    return {name: Rows({"text": column}) for name, column in texts.items()}
