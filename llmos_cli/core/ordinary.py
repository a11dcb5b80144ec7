"""Ordinary words: what methods, tasks and options are called, and the words that options take. Who has one of them in a variable
that is called `SORT_KEY` keeps no secret there, and a manifest without it would not say what was done.

They are read from the source, as help is (`catalog.py`): nothing is imported for them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@cache
def words() -> frozenset[str]:
    """Of the package itself: a plugin's are its own."""
    methods = [*_PACKAGE.glob("methods/*/*.py")]
    named = {path.stem.replace("_", "-") for path in (*methods, *_PACKAGE.glob("tasks/*.py"))}
    options = (word for path in (*methods, *_PACKAGE.glob("options/*.py")) for word in _of_options(path))
    return frozenset(named.union(options))


def _of_options(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            values = (each.value for each in ast.walk(node.slice) if isinstance(each, ast.Constant))
            yield from (value for value in values if isinstance(value, str))
