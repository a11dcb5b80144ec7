"""A manifest says the same after a round trip, and its id depends on content alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core import manifest
from llmos_cli.core.manifest import FileEntry, Made, plain
from llmos_cli.errors import Corrupt, LlmosError

NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
MAPPINGS = st.dictionaries(TEXT, VALUES, max_size=4)
IDS = st.text("0123456789abcdef", min_size=64, max_size=64)
MADE = st.builds(
    Made,
    operation=st.sampled_from(["train", "prune"]),
    parents=st.lists(IDS, max_size=2).map(tuple),
    config=MAPPINGS,
    data=MAPPINGS,
    environment=MAPPINGS,
    seed=st.integers(0, 2**32),
    time=st.just("2026-11-22T10:45:01Z"),
)
TREES = st.dictionaries(TEXT.filter(bool), st.builds(FileEntry, sha256=IDS, size=st.integers(0, 2**50)), max_size=4)


@given(TREES, MADE)
def test_round_trip_keeps_everything_and_the_id(tmp_path_factory: Any, tree: dict[str, FileEntry], made: Made) -> None:
    directory = tmp_path_factory.mktemp("m")
    written = manifest.manifest(tree, made)
    written.write(directory)
    read = manifest.read(directory)
    assert read == written
    assert manifest.identify(read.tree, read.made) == read.id


@given(TREES, MADE)
def test_order_does_not_matter(tree: dict[str, FileEntry], made: Made) -> None:
    turned = Made(**{**made.__dict__, "config": dict(reversed(list(made.config.items())))})
    assert manifest.identify(dict(reversed(list(tree.items()))), turned) == manifest.identify(tree, made)


def test_the_id_is_the_hash_of_canonical_json() -> None:
    made = Made("train", (), {"b": 1.0, "a": "é"}, {}, {}, 7, "2026-11-22T10:45:01Z")
    # sha256 of {"made":{"config":{"a":"é","b":1},"data":{},...},"tree":{"f":{"sha256":"aa","size":1}}} by RFC 8785
    import hashlib

    canonical = (
        '{"made":{"config":{"a":"é","b":1},"data":{},"environment":{},"operation":"train","parents":[],"seed":7,'
        '"time":"2026-11-22T10:45:01Z"},"tree":{"f":{"sha256":"aa","size":1}}}'
    )
    assert manifest.identify({"f": FileEntry("aa", 1)}, made) == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (float("nan"), "config.x is nan, which a manifest cannot hold"),
        (2**53, "integers up to 2\\^53 - 1 only"),
        (object(), "config.x is a object, which a manifest cannot hold"),
        ("\ud800", "which is not Unicode text"),
    ],
)
def test_what_json_cannot_hold_exactly_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises(LlmosError, match=sentence):
        plain({"x": value}, "config")


def test_plain_makes_lists_and_text() -> None:
    assert plain({"a": (1, 2), "p": Path("x/y"), 3: {"b", "a"}}, "config") == {"a": [1, 2], "p": "x/y", "3": ["a", "b"]}


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"id": "x"}', b'{"id":"x","tree":{"a":1},"made":{}}', b"\xff"])
def test_nonsense_is_corrupt(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(Corrupt, match="is not a manifest"):
        manifest.read(tmp_path)
