"""Splits: `train`, `validation` and `test`, the source's own or made by content hash.

A row goes where the SHA-256 of its content says, so that the same rows always fall the same way, equal rows fall
together, and rows that are added later move none of those that were there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmos_cli.data.documents import LONG, Documents
from llmos_cli.data.fingerprint import digests, split_of
from llmos_cli.data.rows import Rows
from llmos_cli.errors import UsageError
from llmos_cli.options.data import DataOptions

NAMES = ("train", "validation", "test")


def completed(
    splits: Mapping[str, Rows], options: DataOptions, *, source: str, inputs: Sequence[str]
) -> dict[str, Rows]:
    """`splits` with the missing ones cut out of `train`, by the hash of the columns `inputs`; but for those of which no share is asked."""
    asked = {"test": options.test_fraction, "validation": options.validation_fraction}
    shares = {name: share for name, share in asked.items() if share and name not in splits}
    if not shares or "train" not in splits:
        return dict(splits)
    all_ = {**splits, **_cut(splits["train"], shares, source=source, inputs=inputs)}
    return {name: all_[name] for name in NAMES if name in all_}


def _cut(rows: Rows, shares: Mapping[str, float], *, source: str, inputs: Sequence[str]) -> dict[str, Rows]:
    keys = digests(rows, inputs)
    places = {key: split_of(key, shares) for key in keys}
    _fill(places, ("train", *shares), source, _more(rows))
    if "label" in rows.columns:
        _train_every_label(rows["label"], keys, places)
        if len(shares) == 2 and any(shares.values()) and set(places.values()) == {"train"}:
            raise UsageError(
                f"nearly every row of {source} has a label of its own: none is left to evaluate on",
                hint="Is data.columns.label the right column?",
            )
    chosen: dict[str, list[int]] = {name: [] for name in ("train", *shares)}
    for index, key in enumerate(keys):
        chosen[places[key]].append(index)
    return {name: rows.take(indices) for name, indices in chosen.items()}


def _more(rows: Rows) -> str:
    """How there would be more of them."""
    texts = any(isinstance(column, Documents) for column in rows.columns.values())
    return (
        f"A text file is one row until it has more than {LONG:,} characters: add files or text" if texts else "Add rows"
    )


def _fill(places: dict[bytes, str], names: Sequence[str], source: str, more: str) -> None:
    """So few rows that a split got none: it takes the one whose hash is nearest, from the largest split."""
    if len(places) < len(names):
        raise UsageError(
            f"{source} has {len(places)} different rows, too few for {', '.join(names)}",
            hint=f"{more}, or name a file for each split under data.splits.",
        )
    for name in names:
        if name not in places.values():
            members = {n: [key for key in sorted(places) if places[key] == n] for n in names}
            largest = max(members.values(), key=len)
            places[largest[-1 if name == "train" else 0]] = name


def _train_every_label(labels: Sequence[str], keys: Sequence[bytes], places: dict[bytes, str]) -> None:
    """A class so rare that the hash put all of it outside training moves into it."""
    trained = {label for label, key in zip(labels, keys, strict=True) if places[key] == "train"}
    for label, key in zip(labels, keys, strict=True):
        if label not in trained:
            places[key] = "train"
