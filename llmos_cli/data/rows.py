"""Rows: what every source becomes, columns of equal length under canonical names.

`text`, `label` (always a string), `tokens` and `tags` (lists of strings), `image` (uint8, [H, W] or [H, W, 3]).
A column is any sequence: a list, a numpy array, or a lazy one that reads its files or Arrow pages when asked.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, overload


@dataclass(frozen=True)
class Rows:
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __getitem__(self, name: str) -> Sequence[Any]:
        return self.columns[name]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.columns.values(), strict=True)

    def take(self, rows: Sequence[int]) -> Rows:
        return Rows({name: Chosen(column, rows) for name, column in self.columns.items()})

    def evenly(self, limit: int | None) -> Rows:
        """At most `limit` rows, evenly spaced, so that a sorted source is still seen whole."""
        if limit is None or limit >= len(self):
            return self
        return self.take([i * len(self) // limit for i in range(limit)])


def concatenated(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows({name: Chain([part[name] for part in parts]) for name in parts[0].columns})


class Lazy(Sequence[Any]):
    """A sequence whose items are made when asked for: subclasses give `__len__` and `item`."""

    def item(self, index: int) -> Any:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.item(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.item(index % len(self))


class Chosen(Lazy):
    """Some items of another sequence, in the order given."""

    def __init__(self, column: Sequence[Any], rows: Sequence[int]) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Any:
        return self.column[int(self.rows[index])]


class Chain(Lazy):
    """Several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts)

    def item(self, index: int) -> Any:
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]
