"""Fingerprints: which rows exactly, in which order, as SHA-256.

A row's digest is over its columns' names, kinds, lengths and bytes, so no two different rows run together; a split's is
over the digests of its rows in order; a source's names them all. The same digests decide the split of a row (equal rows
always fall together) and key the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmos_cli.data.rows import Rows

_encode = json.JSONEncoder(default=str, separators=(",", ":")).encode


def digests(rows: Rows, columns: Sequence[str] | None = None) -> list[bytes]:
    """One SHA-256 per row over `columns` (all of them when None)."""
    names = sorted(columns or rows.columns)
    return [of_values(zip(names, values, strict=True)) for values in zip(*(rows[n] for n in names), strict=True)]


def of_values(values: Iterable[tuple[str, Any]]) -> bytes:
    return hashlib.sha256(framed(values)).digest()


def framed(values: Iterable[tuple[str, Any]]) -> bytes:
    """What a row's digest is over, and how a snapshot keeps the row."""
    return b"".join(
        part
        for name, value in values
        for content in (_bytes(value),)
        for part in (f"{name}:{len(content)}:".encode(), content)
    )


def value_of(content: bytes) -> Any:
    """What `framed` made these bytes of a value from; ValueError where it made them of none."""
    kind, rest = content[:1], content[1:]
    if kind == b"s":
        return rest.decode("utf-8", "surrogatepass")
    if kind == b"b":
        return rest
    if kind == b"j":
        return json.loads(rest)
    if kind == b"a" and (told := _ARRAY.match(rest)):
        shape = tuple(int(side) for side in told[2].split(b",") if side.strip())
        return np.frombuffer(rest[told.end() :], _dtype(told[1].decode())).reshape(shape)
    raise ValueError(f"a value begins with {kind!r}")


_ARRAY = re.compile(rb"([<>|=][biufc]\d+)\(([\d, ]*)\)")


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise ValueError(f"{name} is no type of numbers") from error


def of_split(row_digests: Sequence[bytes]) -> dict[str, Any]:
    return {"rows": len(row_digests), "sha256": hashlib.sha256(b"".join(row_digests)).hexdigest()}


def of_json(value: Any) -> str:
    """Of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fraction(digest: bytes) -> float:
    """A digest as a number in [0, 1): the place of its row among the splits."""
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(digest: bytes, fractions: Mapping[str, float]) -> str:
    """The split whose share of [0, 1) holds this digest, `fractions` in order from 0; `train` beyond them."""
    at, end = fraction(digest), 0.0
    for name, share in fractions.items():
        end += share
        if at < end:
            return name
    return "train"


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, str):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, np.ndarray):
        return f"a{value.dtype.str}{value.shape}".encode() + value.tobytes()
    return b"j" + _encode(value).encode()
