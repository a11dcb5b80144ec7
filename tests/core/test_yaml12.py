"""YAML with places: scalars of version 1.2, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core import yaml12
from llmos_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("2E5", 2e5), ("-.5", -0.5), ("3.", 3.0), ("12", 12), ("-7", -7), ("010", 10), ("0o17", 15), ("0xff", 255),
        ("off", "off"), ("yes", "yes"), ("No", "No"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        (".inf", float("inf")), ("-.INF", float("-inf")), ("2024-01-01", "2024-01-01"), ("1:30", "1:30"), ("1_000", "1_000"),
        ("'5'", "5"), ('"a\\nb"', "a\nb"), ("builtin:pydoc", "builtin:pydoc"), ("1e5x", "1e5x"), ("0b1", "0b1"),
    ],
)  # fmt: skip
def test_scalars(text, value):
    read = yaml12.parse(f"x: {text}", "").plain()["x"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice", 3, 1),
        ("a: {b: 1, b: 2}", "'b' is given twice", 1, 11),
        ("a: &x [1]\nb: *x", "aliases", 2, 4),
        ("a: !!python/object/apply:os.system [ls]", "tags", 1, 4),
        ("a: b: c", "not valid YAML", 1, 5),
        ("a:\n\t- b", "not valid YAML", 2, 1),
        ("a: [1, 2", "not valid YAML", 2, 1),
        ("a: 1\n---\nb: 2", "a second document", 2, 1),
        ("? [a]\n: b", "a key must be a word", 1, 3),
        ("<<: {a: 1}", "merge keys", 1, 1),
        ("[" * 10_000, "nested deeper than 32", 1, 33),
        ("\n".join(" " * depth + "a:" for depth in range(500)), "nested deeper than 32", 33, 33),
    ],
)
def test_refused_with_the_place(text, message, line, column):
    with pytest.raises(ConfigError, match=message) as caught:
        yaml12.parse(text, "x.yaml")
    place = caught.value.place
    assert place is not None
    assert (place.file, place.line, place.column) == ("x.yaml", line, column)


def test_a_frame_points_at_the_column():
    with pytest.raises(ConfigError) as caught:
        yaml12.parse("seed: 1\ntrain:\n  a: 1\n  a: 2\n", "x.yaml")
    place = caught.value.place
    assert place is not None
    assert place.frame == "3 |   a: 1\n4 |   a: 2\n  |   ^"


def test_control_characters_and_huge_files_are_refused():
    for text in ("a: \x00", "a: " + "x" * yaml12.MAX_BYTES):
        with pytest.raises(ConfigError):
            yaml12.parse(text, "x.yaml")


def test_an_empty_file_is_an_empty_mapping():
    assert yaml12.parse("", "").plain() == yaml12.parse("# nothing\n", "").plain() == {}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_what_is_dumped_reads_back(value):
    assert yaml12.parse(f"x: {yaml12.dump(value)}", "").plain()["x"] == value
