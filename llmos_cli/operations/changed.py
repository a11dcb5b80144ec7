"""Nested values compared leaf by leaf: `train.max_steps` was 5 and is 6."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Changed:
    """One key's two values; None where a side has no such key."""

    key: str
    before: Any
    after: Any


def changed(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Changed]:
    """Leaves that differ, in the order of the first; an option that was never set is no difference."""
    one, other = dict(leaves(before, prefix)), dict(leaves(after, prefix))
    return [Changed(key, one.get(key), other.get(key)) for key in {**one, **other} if one.get(key) != other.get(key)]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if value != [] else None
