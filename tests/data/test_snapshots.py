"""Snapshots of rows: what comes back is what was kept, to the bit, and what changes little costs little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.snapshots import Snapshot, Snapshots, parse
from llmos_cli.data import fingerprint, snapshots
from llmos_cli.data.rows import Rows
from llmos_cli.data.sources import load
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.options.data import DataOptions

TEXTS = st.text(st.characters(exclude_categories=()))  # lone surrogates too: docstrings have them
ARRAYS = st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(
    lambda shape: st.binary(min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    )
)
VALUES = st.one_of(TEXTS, st.binary(), ARRAYS, st.lists(TEXTS, max_size=3))
TABLES = st.lists(st.tuples(VALUES, TEXTS), min_size=1, max_size=30).map(
    lambda rows: Rows({"text": [row[0] for row in rows], "label": [row[1] for row in rows]})
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PIECE", 400)


def keep(store: Snapshots, splits: dict[str, Rows], asked: str = "") -> Snapshot:
    made = snapshots.kept(splits, source="rows", asked=asked, store=store.store)
    store.write(made)
    return made


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and one == other


@settings(deadline=None, max_examples=25)
@given(train=TABLES, test=TABLES, at=st.data())
def test_what_is_kept_comes_back(tmp_path_factory: pytest.TempPathFactory, train: Rows, test: Rows, at: Any) -> None:
    store = Snapshots(tmp_path_factory.mktemp("dot"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "PIECE", 100)
        made = keep(store, {"train": train, "test": test})
    assert parse(made.text().encode()) == made == store.find(made.id[:8])
    assert made.fingerprint == {
        "train": fingerprint.of_split(fingerprint.digests(train)),
        "test": fingerprint.of_split(fingerprint.digests(test)),
    }
    again = snapshots.rows(store, made, ("text", "label"))["train"]
    assert len(again) == len(train)
    assert all(same(*pair) for name in ("text", "label") for pair in zip(again[name], train[name], strict=True))
    row = at.draw(st.integers(0, len(train) - 1))
    assert same(again["text"][row], train["text"][row]) and store.wrong(made) == ""


def test_a_digest_is_over_what_is_kept() -> None:
    """As it was before there were snapshots: manifests of then name the same rows."""
    row = [("label", "spam"), ("text", "he\u0301llo")]
    assert fingerprint.framed(row) == b"label:5:sspamtext:8:she\xcc\x81llo"
    assert fingerprint.of_values(row).hex().startswith("67a675d9c0a6")


def numbered(rows: list[int]) -> Rows:
    return Rows({"text": [f"row number {row} of many, each of which is a line" for row in rows]})


def test_data_that_changed_in_one_place_shares_all_else(tmp_path: Path, small: None) -> None:
    store = Snapshots(tmp_path)
    before = keep(store, {"train": numbered([*range(600)])}).pieces
    grown = keep(store, {"train": numbered([*range(600), -1, -2])}).pieces
    middle = keep(store, {"train": numbered([*range(300), -3, *range(301, 600)])}).pieces
    assert len(before) > 40
    assert len(grown.keys() - before.keys()) <= 2 and len(middle.keys() - before.keys()) <= 2
    assert max(before.values()) <= 4 * 400
    repeated = keep(store, {"train": numbered([*range(600)] * 3)})
    assert repeated.rows == 1800 and len(repeated.pieces.keys() - before.keys()) <= 3


def test_one_reader_holds_a_few_pieces_at_a_time(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Snapshots(tmp_path)
    made = keep(store, {"train": numbered([*range(300)])})
    loads: list[str] = []
    monkeypatch.setattr(Snapshots, "load", lambda self, piece: loads.append(piece.sha256) or _load(self, piece))
    texts = snapshots.rows(store, made, ("text",))["train"]["text"]
    assert list(texts) == list(numbered([*range(300)])["text"])
    assert len(loads) == len(made.splits["train"].pieces), "in order, each is read once"
    held = texts._reader._opened.cache_info()  # type: ignore[attr-defined]
    assert held.currsize == 4 < len(loads)


_load = Snapshots.load


def sound(store: Snapshots, snapshot: str, text: bytes) -> bool:
    store.path(snapshot).write_bytes(text)
    return not store.damaged(snapshot)


def test_every_flipped_byte_is_found(tmp_path: Path, small: None) -> None:
    store = Snapshots(tmp_path)
    made = keep(store, {"train": numbered([*range(12)])})
    for sha256, path in [*store.stored()]:
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert sha256[:12] in store.wrong(made)
            with pytest.raises(Corrupt):
                list(snapshots.rows(store, made, ("text",))["train"]["text"])
        path.write_bytes(whole)
    text = store.path(made.id).read_bytes()
    for at in range(0, len(text), 3):
        assert not sound(store, made.id, text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]), f"byte {at}"
    assert sound(store, made.id, text)
    pieces = made.splits["train"].pieces
    for told in (f'"rows": {pieces[0].rows},', f'"size": {pieces[0].size}'):
        word, count = told.rstrip(",").split(": ")
        fewer = parse(text.replace(told.encode(), f"{word}: {int(count) - 1}{',' * told.endswith(',')}".encode(), 1))
        assert fewer != made and "and not" in store.wrong(fewer), "though every byte of every piece is right"
    lying = text.replace(f'"rows": {made.rows}'.encode(), b'"rows": 11')
    store.path(made.id).write_bytes(lying)
    with pytest.raises(Corrupt, match="not the snapshot that its name says"):
        store.read(made.id)
    swapped = text.replace(pieces[0].sha256.encode(), b"?").replace(
        pieces[1].sha256.encode(), pieces[0].sha256.encode()
    )
    store.path(made.id).write_bytes(swapped.replace(b"?", pieces[1].sha256.encode()))
    assert store.wrong(store.read(made.id)), "other rows, though each piece is whole"


def test_a_piece_that_was_damaged_is_kept_anew(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    made = keep(store, {"train": numbered([1, 2, 3])})
    ((_, path), *_) = store.stored()
    path.write_bytes(b"x" * path.stat().st_size)
    assert store.wrong(made)
    keep(store, {"train": numbered([1, 2, 3])})
    assert store.wrong(made) == ""


def test_a_source_that_is_a_snapshot_and_one_that_is_gone(tmp_path: Path) -> None:
    cache = tmp_path / ".llmos" / "cache"
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(f'{{"text": "note {row}"}}\n' for row in range(60)))
    options = DataOptions(source="notes.jsonl")
    before = load(options, ("text",), cache=cache)
    store = Snapshots(tmp_path / ".llmos")
    made = keep(store, dict(before.splits), snapshots.asked(options, ("text",)))
    named = load(DataOptions(source=f"snapshot:{made.id[:6]}"), ("text",), cache=cache)
    assert named.fingerprint["splits"] == before.fingerprint["splits"] == made.fingerprint
    with pytest.raises(UsageError, match="has no column label"):
        load(DataOptions(source=f"snapshot:{made.id}"), ("text", "label"), cache=cache)
    file.unlink()
    gone = load(options, ("text",), cache=cache)
    assert gone.fingerprint == before.fingerprint
    assert gone.notes[0].startswith("there is no file or folder notes.jsonl: the rows of snapshot " + made.id[:12])
    with pytest.raises(NotFound, match=r"notes\.jsonl"):
        load(DataOptions(source="notes.jsonl", test_fraction=0.2), ("text",), cache=cache)
