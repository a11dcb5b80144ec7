from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.data.fingerprint import digests, of_split
from llmos_cli.data.rows import Rows, concatenated
from llmos_cli.data.splits import completed
from llmos_cli.options.data import DataOptions

texts = st.lists(st.text(min_size=1, max_size=8), min_size=4, max_size=60).filter(lambda rows: len(set(rows)) > 3)


def split(rows: list[str], **options: float) -> dict[str, list[str]]:
    made = completed({"train": Rows({"text": rows})}, DataOptions(**options), source="rows", inputs=("text",))
    return {name: list(part["text"]) for name, part in made.items()}


@given(texts)
def test_splits_cover_all_rows_and_share_none(rows):
    made = split(rows)
    assert sorted(text for part in made.values() for text in part) == sorted(rows)
    assert all(
        not set(made[a]) & set(made[b]) for a, b in (("train", "test"), ("train", "validation"), ("test", "validation"))
    )
    assert all(made.values())


@given(texts, st.randoms())
def test_a_row_falls_where_its_content_says(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert {name: sorted(part) for name, part in split(rows).items()} == {
        name: sorted(part) for name, part in split(shuffled).items()
    }


def test_rows_added_later_move_none():
    few, many = split([f"row {i}" for i in range(300)]), split([f"row {i}" for i in range(600)])
    assert set(few["test"]) <= set(many["test"]) and set(few["validation"]) <= set(many["validation"])
    assert 10 <= len(many["test"]) <= 60


def test_a_rare_class_is_trained_on():
    texts = [f"row {i}" for i in range(200)]
    test = split(texts)["test"]
    rows = Rows({"text": texts, "label": ["rare" if text == test[0] else "usual" for text in texts]})
    made = completed({"train": rows}, DataOptions(), source="rows", inputs=("text",))
    assert "rare" in set(made["train"]["label"]) and "rare" not in set(made["test"]["label"])


def test_fingerprints_see_order_boundaries_and_columns():
    def of(**columns):
        return of_split(digests(Rows(columns)))["sha256"]

    distinct = [
        of(text=["ab", "c"]),
        of(text=["a", "bc"]),
        of(text=["c", "ab"]),
        of(label=["ab", "c"]),
        of(text=["ab", "c", ""]),
    ]
    assert len(set(distinct)) == 5
    assert of(text=["ab", "c"], label=["x", "y"]) == of(label=["x", "y"], text=["ab", "c"])


def test_concatenated_rows_read_as_one():
    rows = concatenated([Rows({"text": ["a", "b"]}), Rows({"text": []}), Rows({"text": ["c"]})])
    assert list(rows["text"]) == ["a", "b", "c"] == [rows["text"][i] for i in range(3)]
    assert rows["text"][1:] == ["b", "c"] and rows["text"][-1] == "c"
    assert list(Rows({"text": list("abcdef")}).evenly(3)["text"]) == ["a", "c", "e"]
