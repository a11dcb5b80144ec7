"""Texts and words as they are read with `data.mask_pii`: without personal data, by the rules of `pii.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmos_cli.data import pii
from llmos_cli.data.rows import Lazy, Rows
from llmos_cli.errors import UsageError

COLUMNS = ("text", "tokens")


class Masked(Lazy):
    """A column; `found`: what was masked in each row that was asked for and had any."""

    def __init__(self, column: Sequence[Any]) -> None:
        self._column = column
        self.found: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._column)

    def __iter__(self) -> Iterator[Any]:
        return (self._masked(index, value) for index, value in enumerate(self._column))

    def item(self, index: int) -> Any:
        return self._masked(index, self._column[index])

    def _masked(self, index: int, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        found = [pii.find(text) for text in texts]
        if not any(found):
            return value
        self.found[index] = [each.kind for several in found for each in several]
        masked = [pii.put(text, several) for text, several in zip(texts, found, strict=True)]
        return masked[0] if isinstance(value, str) else masked


def masked(splits: Mapping[str, Rows], seen: list[Masked]) -> dict[str, Rows]:
    """The same rows with what they say of people masked; lists of words keep their number, each word for itself. `seen` gets the
    columns, to be asked what was found."""
    return {name: _masked(rows, seen) for name, rows in splits.items()}


def _masked(rows: Rows, seen: list[Masked]) -> Rows:
    found = {name: Masked(column) for name, column in rows.columns.items() if name in COLUMNS}
    if not found:
        raise UsageError("data.mask_pii is set, and pictures have no text to mask", hint="leave it out")
    seen += found.values()
    return Rows({**rows.columns, **found})


def told(seen: Iterable[Masked]) -> list[str]:
    """A sentence on what was masked in columns all of whose rows have been read by now."""
    rows = [kinds for column in seen for kinds in column.found.values()]
    counts = Counter(kind for kinds in rows for kind in kinds)
    said = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    return [f"personal data was masked in {len(rows):,} rows: {said}"] if rows else []
