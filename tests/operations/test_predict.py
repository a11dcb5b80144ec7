"""`llmos predict`: one line for each row, and an accuracy that can be recomputed from them."""

import csv
import json

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.data import sources
from llmos_cli.options.data import DataOptions


def predictions(text):
    return [json.loads(line) for line in text.splitlines()]


def test_the_accuracy_of_the_file_is_evals(digits: Workspace, llmos, tmp_path):
    out = tmp_path / "out.jsonl"
    ran = llmos("predict", "HEAD", "builtin:digits", "-o", out, "-q")
    assert ran.code == 0, ran.err
    rows = predictions(out.read_text())
    accuracy = sum(row["label"] == row["truth"] for row in rows) / len(rows)
    unlimited = ("-s", "data.max_eval_samples=1000", "-s", "eval.latency=false", "-q", "--json")
    evaluation = llmos("eval", "HEAD", *unlimited).json["evaluations"][0]
    assert evaluation["samples"] == len(rows)
    assert evaluation["metrics"]["accuracy"]["value"] == accuracy
    assert f"{len(rows)} predictions of HEAD" in ran.out
    first = rows[0]
    assert first["row"] == 0 and sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["confidence"] == max(first["probabilities"].values()) == first["probabilities"][first["label"]]


def test_a_language_model_tells_how_likely_each_text_is(line: Workspace, llmos, tmp_path):
    texts = sources.load(DataOptions(source="builtin:pydoc"), ["text"], cache=line.cache).splits["test"]["text"][:3]
    file = tmp_path / "texts.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in texts)])
    ran = llmos("predict", "base", file, "-q")
    assert ran.code == 0, ran.err
    rows = predictions(ran.out)
    assert [row["bytes"] for row in rows] == [len(text.encode()) for text in texts]
    for row in rows:
        assert row["bits_per_byte"] == pytest.approx(row["nll"] / 0.6931471805599453 / row["bytes"])


def test_json_holds_the_rows(digits: Workspace, llmos):
    result = llmos("predict", "HEAD", "builtin:digits", "-q", "--json").json
    assert (result["file"], result["output"]) == ("builtin:digits", None)
    assert result["rows"] == len(result["predictions"])
    assert result["accuracy"] == sum(row["label"] == row["truth"] for row in result["predictions"]) / result["rows"]


def test_json_says_where_the_rows_were_written(digits: Workspace, llmos, tmp_path):
    out = tmp_path / "out.jsonl"
    result = llmos("predict", "HEAD", "builtin:digits", "-o", out, "-q", "--json").json
    assert (result["file"], result["output"], result["predictions"]) == ("builtin:digits", str(out), None)


@pytest.mark.parametrize(
    ("rev", "content", "code", "says"),
    [("nope", "text\nhello\n", 4, "no checkpoint"), ("base", "", 2, "is empty"), ("base", None, 4, "texts.csv")],
)
def test_what_cannot_be_predicted(line: Workspace, llmos, tmp_path, rev, content, code, says):
    file = tmp_path / "texts.csv"
    if content is not None:
        file.write_text(content)
    ran = llmos("predict", rev, file, "-o", tmp_path / "out.jsonl", "-q")
    assert ran.code == code
    assert says in ran.err and "Traceback" not in ran.err
    assert not [path for path in tmp_path.iterdir() if "out.jsonl" in path.name]
