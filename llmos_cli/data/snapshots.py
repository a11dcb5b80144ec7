"""Snapshots of rows: written piece by piece as they are read, read again piece by piece.

What is kept are the rows that a run saw (their columns under canonical names, cut into splits, masked where they are), not the
files they came from: so a table, an image folder, a data set of the hub and what is built in are all kept in one way, and
what was kept needs no network, no file and no option to be the same rows again. See `core/snapshots.py` for what stands where.
"""

from __future__ import annotations

import bisect
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from llmos_cli.core.snapshots import KeptSplit, Piece, Snapshot, Snapshots, frames, identify
from llmos_cli.data import fingerprint
from llmos_cli.data.cache import workspace_of
from llmos_cli.data.rows import Lazy, Rows
from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.options.data import DataOptions

PREFIX = "snapshot:"
PIECE = 1 << 22
"""Bytes in a piece, on average; none has more than four times as many, but for a single row that does."""
_HELD = 4
"""Pieces in memory at a time."""
_CHOOSING = {"source", "evaluate", "format", "columns", "splits", "validation_fraction", "test_fraction", "mask_pii"}

Store = Callable[[bytes], str]


def asked(options: DataOptions, columns: Sequence[str]) -> str:
    """A hash of everything that a config says of which rows are read."""
    return fingerprint.of_json([options.model_dump(mode="json", include=_CHOOSING), list(columns)])


def kept(splits: Mapping[str, Rows], *, source: str, asked: str, store: Store) -> Snapshot:
    """All rows, each piece handed to `store`, which gives its name; a piece and a row are in memory at a time."""
    made = {name: _kept(rows, store) for name, rows in splits.items()}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    described = {name: {"rows": split.rows, "sha256": split.sha256} for name, split in made.items()}
    return Snapshot(identify(described), source, asked, now, made)


def _kept(rows: Rows, store: Store) -> KeptSplit:
    names = tuple(sorted(rows.columns))
    hasher, pieces = hashlib.sha256(), list[Piece]()
    for framed in _pieces(rows, names):
        for row in framed:
            hasher.update(hashlib.sha256(row).digest())
        content = b"".join(framed)
        pieces.append(Piece(store(content), len(content), len(framed)))
    return KeptSplit(sum(piece.rows for piece in pieces), hasher.hexdigest(), names, tuple(pieces))


def _pieces(rows: Rows, names: Sequence[str]) -> Iterator[list[bytes]]:
    """Rows as bytes. A piece ends at a row whose digest, seen as a number, is small for the row's size: rows that come before
    or after it move no end, and a piece has `PIECE` bytes on average."""
    piece, size = list[bytes](), 0
    for values in zip(*(rows[name] for name in names), strict=True):
        row = fingerprint.framed(zip(names, values, strict=True))
        if piece and size + len(row) > 4 * PIECE:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += len(row)
        if fingerprint.fraction(hashlib.sha256(row).digest()) * PIECE < len(row):
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def rows(snapshots: Snapshots, snapshot: Snapshot, columns: Sequence[str]) -> dict[str, Rows]:
    """The splits again, of these columns; each piece is hashed as it is read."""
    there = next(iter(snapshot.splits.values())).columns
    if missing := [column for column in columns if column not in there]:
        raise UsageError(
            f"snapshot {snapshot.id[:12]} has no column {missing[0]} (it has {', '.join(there)})",
            hint="choose a snapshot that fits data.task: `llmos data list` shows them",
        )
    return {name: _rows(snapshots, split, columns) for name, split in snapshot.splits.items()}


def _rows(snapshots: Snapshots, split: KeptSplit, columns: Sequence[str]) -> Rows:
    reader = _Reader(snapshots, split)
    return Rows({name: _Column(reader, split.columns.index(name)) for name in columns})


def latest(snapshots: Snapshots, asked: str) -> Snapshot | None:
    """The last one that was kept of what a config asks for; None for none."""
    found = [each for each in snapshots.all() if each.asked == asked]
    return max(found, key=lambda each: (each.time, each.id), default=None)


def of_cache(cache: Path) -> Snapshots:
    """Those of the workspace whose cache it is."""
    return Snapshots(workspace_of(cache) / ".llmos")


class _Reader:
    """The rows of a split; the pieces read last are held."""

    def __init__(self, snapshots: Snapshots, split: KeptSplit) -> None:
        self._pieces = split.pieces
        self._ends = list(accumulate(piece.rows for piece in split.pieces))

        @lru_cache(maxsize=_HELD)
        def opened(index: int) -> tuple[bytes, list[list[tuple[int, int]]]]:
            content = snapshots.load(split.pieces[index])
            return content, [values for _, _, values in frames(content, split.columns)]

        self._opened = opened

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def value(self, row: int, column: int) -> Any:
        index = bisect.bisect_right(self._ends, row)
        try:
            content, places = self._opened(index)
            begin, end = places[row - self._ends[index] + self._pieces[index].rows][column]
            return fingerprint.value_of(content[begin:end])
        except (ValueError, IndexError, RecursionError) as error:
            raise Corrupt(
                f"row {row + 1} of a snapshot makes no sense: {error}", hint="`llmos fsck` tells more"
            ) from error


class _Column(Lazy):
    def __init__(self, reader: _Reader, column: int) -> None:
        self._reader, self._column = reader, column

    def __len__(self) -> int:
        return len(self._reader)

    def item(self, index: int) -> Any:
        return self._reader.value(index, self._column)
