"""Columns: which of the user's are the text, the label, the words..., and their values in one form.

Labels become strings, whatever they were; words and tags lists of strings (a string is split at spaces); an image is
an array, or the bytes of its file until it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from llmos_cli.data.places import below, filesystem
from llmos_cli.data.rows import Lazy, Rows
from llmos_cli.errors import UsageError
from llmos_cli.options.data import Columns

GUESSES = {
    "text": ("text", "content", "sentence", "document", "body", "review", "message", "article", "passage", "question"),
    "label": ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "y"),
    "image": ("image", "img", "picture", "photo", "pixels", "file_name"),
    "tokens": ("tokens", "words", "token", "word"),
    "tags": ("tags", "ner_tags", "labels", "pos_tags", "chunk_tags", "upos", "tag", "label"),
}


def canonical(
    table: Mapping[str, Sequence[Any]],
    wanted: Sequence[str],
    options: Columns,
    *,
    source: str,
    names: Mapping[str, Any],
    folders: Sequence[str] = (),
) -> Rows:
    """The columns `wanted` out of a table; `names` has the class names of those whose values are numbers, `folders` are those
    that paths in it are relative to: the table's (several, where it was put together of several), then the workspace."""
    chosen = {kind: choose(kind, list(table), options, source=source, wanted=wanted) for kind in wanted}
    return Rows(
        {
            kind: Converted(table[column], _form(kind, names.get(column), folders), column, source)
            for kind, column in chosen.items()
        }
    )


def choose(kind: str, there: Sequence[str], options: Columns, *, source: str, wanted: Sequence[str]) -> str:
    """The name of the column that holds `kind`: as told, else guessed, else the only one that is left."""
    told = getattr(options, kind)
    if told is not None:
        if told in there:
            return str(told)
        close = get_close_matches(told, there, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Set data.columns.{kind} to one of them."
        raise UsageError(f"{source} has no column {told} (it has {', '.join(there)})", hint=hint)
    lower = {name.strip().lower(): name for name in reversed(there)}
    guess = next((lower[name] for name in GUESSES[kind] if name in lower), None)
    left = [name for name in there if name.strip().lower() not in _guessable(wanted, but=kind)]
    if guess is None and len(left) == 1:
        guess = left[0]
    if guess is None:
        raise UsageError(
            f"{source} has no column that looks like {kind} (it has {', '.join(there)})",
            hint=f"Set data.columns.{kind} to one of them.",
        )
    return guess


def _guessable(wanted: Sequence[str], *, but: str) -> set[str]:
    return {name for kind in wanted if kind != but for name in GUESSES[kind]}


class Unfit(Exception):
    """A value that its column's form cannot be made of."""


class Converted(Lazy):
    """A column whose values take their form when asked for; a missing one is an error that names its row."""

    def __init__(self, column: Sequence[Any], form: Callable[[Any], Any], name: str, source: str) -> None:
        self.column, self.form, self.name, self.source = column, form, name, source

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[Any]:
        return (self._formed(index, value) for index, value in enumerate(self.column))

    def item(self, index: int) -> Any:
        return self._formed(index, self.column[index])

    def _formed(self, index: int, value: Any) -> Any:
        if value is None or value != value:  # None, or a float's NaN
            raise UsageError(f"row {index + 1} of {self.source} has no {self.name}", hint="Fill it in or drop the row.")
        try:
            return self.form(value)
        except Unfit as unfit:
            raise UsageError(
                f"row {index + 1} of {self.source}: {self.name} is {unfit}, not a list of words",
                hint="Name the column that has one, under data.columns.",
            ) from unfit


def _form(kind: str, names: Any, folders: Sequence[str]) -> Callable[[Any], Any]:
    if kind == "label":
        return lambda value: _label(value, names)
    if kind == "tags":
        return lambda value: [_label(tag, names) for tag in _several(value)]
    if kind == "tokens":
        return lambda value: [str(word) for word in _several(value)]
    return (lambda value: _image(value, folders)) if kind == "image" else str


def _label(value: Any, names: Any) -> str:
    if names is not None and isinstance(value, int):
        return str(names[value])
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _several(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, Sequence):
        raise Unfit(f"{value!r}")
    return value


def _image(value: Any, folders: Sequence[str]) -> Any:
    """Bytes of an encoded file, or an array of pixels."""
    if isinstance(value, dict):
        return File(value["bytes"], value.get("path")) if value.get("bytes") else _file(value["path"], folders)
    if isinstance(value, str):
        return _file(value, folders)
    return value if isinstance(value, bytes) else np.asarray(value, np.uint8)


class File(bytes):
    """The bytes of a file, which know where they come from."""

    path: str

    def __new__(cls, content: bytes, path: str | None) -> File:
        file = super().__new__(cls, content)
        file.path = path or "a file"
        return file


def _file(path: str, folders: Sequence[str]) -> bytes:
    """The bytes of the file that `path` names in a table."""
    *tables, workspace = folders or ("",)
    there = [place for place in dict.fromkeys(below(table, path) for table in tables) if _is_file(place)]
    if len(there) > 1:
        raise UsageError(
            f"the image {path} could be {' or '.join(there)}", hint="Make the paths in the tables absolute."
        )
    place = there[0] if there else below(workspace, path)
    if not _is_file(place):
        hint = f"Paths are absolute, or relative to the table's folder ({', '.join(tables)}) or the workspace's."
        raise UsageError(f"there is no image {path}", hint=hint)
    system, inside = filesystem(place)
    return File(system.cat_file(inside), path)


def _is_file(place: str) -> bool:
    system, path = filesystem(place)
    return bool(system.isfile(path))
