"""Docstrings of the standard library and the package each is from: text to classify, 20 classes."""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.data import stdlib
from llmos_cli.data.cache import json_entry
from llmos_cli.data.fingerprint import split_of
from llmos_cli.data.rows import Rows

FRACTIONS = {"test": 0.15, "validation": 0.1}
CLASSES = 20
MASK = "___"
Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def load(cache: Path) -> dict[str, Rows]:
    """(text, label) of the 20 packages with most docstrings, in splits by the SHA-256 of the text, so that none is in two."""
    sources = list(stdlib.files())
    rows = json_entry(cache, "docstrings", ["docstrings/1", stdlib.identity(sources)], lambda: _rows(sources))
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for text, label in rows:
        splits[split_of(hashlib.sha256(text.encode()).digest(), FRACTIONS)].append((text, label))
    return {
        name: Rows({"text": [t for t, _ in pairs], "label": [x for _, x in pairs]}) for name, pairs in splits.items()
    }


def _rows(sources: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Distinct texts that one package alone has, of the packages with most of them."""
    found = dict.fromkeys((_masked(text, package), package) for package, text in _docstrings(sources))
    owners = Counter(text for text, _ in found)
    single = [(text, package) for text, package in found if owners[text] == 1]
    largest = {package for package, _ in Counter(package for _, package in single).most_common(CLASSES)}
    return [(text, package) for text, package in single if package in largest]


def _docstrings(sources: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for path, source in sources:
        package = path.split("/")[0].removesuffix(".py")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources are not the user's concern
            tree = ast.parse(source)
        for node in _definitions(tree):
            if text := ast.get_docstring(node):
                yield package, text


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """Modules, classes and functions, those within statements too; expressions, nine tenths of a tree, hold none."""
    if isinstance(node, Definition):
        yield node
    for statements in ("body", "orelse", "handlers", "finalbody"):
        children = getattr(node, statements, None)
        if isinstance(children, list):
            for child in children:
                yield from _definitions(child)


def _masked(text: str, package: str) -> str:
    """The package's own name gives the answer away, so it is blanked, in any case and beside underscores."""
    return re.sub(rf"(?<![a-z0-9]){re.escape(package)}(?![a-z0-9])", MASK, text, flags=re.IGNORECASE)
