"""log --metric: how a metric moved along a line, on one split, and the line drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.events import Metric
from llmos_cli.operations.course import BARS, GAP, sparkline


@pytest.fixture
def measured(ws, monkeypatch):
    """`measured(checkpoint, loss=2.0)` records it as an evaluation would."""
    monkeypatch.chdir(ws.root)

    def measure(checkpoint, split="test", spread=None, samples="", **metrics):
        with ws.begin("eval", config={}, parents=[checkpoint.id]) as run:
            for name, value in metrics.items():
                ends = (None, None) if spread is None else (value - spread, value + spread)
                run.emit(
                    Metric(name, value, split, checkpoint=checkpoint.id, low=ends[0], high=ends[1], samples=samples)
                )

    return measure


def test_a_metric_along_a_line(commit, measured, llmos):
    first, second, third = commit(a="1"), commit("prune", a="2"), commit("quantize", a="3")
    measured(first, loss=2.0, spread=0.1)
    measured(third, loss=2.5)
    llmos("tag", "base", "HEAD~2")
    assert llmos("log", "--metric", "loss").out.splitlines() == [
        f"{third.id[:12]}  quantize m  2.5              +25.00 %  (main)",
        f"{second.id[:12]}  prune m     —",
        f"{first.id[:12]}  train m     2    [1.9, 2.1]            (base)",
        "",
        "loss on the test split, oldest to newest: ▁·█",
    ]
    points = llmos("log", "--metric", "loss", "--json", "HEAD").json["points"]
    assert [point["change"] for point in points] == [0.25, None, None]


def test_values_on_other_samples_are_no_part_of_the_line(commit, measured, llmos):
    first, second, third, fourth = (commit(a=text) for text in "1234")
    measured(first, loss=2.0)  # on which samples was not told then
    measured(second, loss=9.0, samples="old")
    measured(third, loss=3.0, samples="new")
    measured(fourth, loss=4.0, samples="new")
    told = llmos("log", "--metric", "loss", "--json").json
    assert told["line"] == "▁·▅█"
    assert [point["other_samples"] for point in told["points"]] == [False, False, True, False]
    assert [point["change"] for point in told["points"]] == [pytest.approx(1 / 3), None, 3.5, None]
    assert "a value on other samples is left out" in llmos("log", "--metric", "loss").out
    measured(second, loss=8.0, samples="new")
    assert llmos("log", "--metric", "loss", "--json").json["line"] == "▁█▂▃"


def test_the_change_is_from_an_ancestor_even_if_it_is_not_listed(commit, measured, llmos):
    measured(commit(a="1"), loss=2.0)
    measured(commit(a="2"), loss=1.0)
    told = llmos("log", "--metric", "loss", "-n", "1", "--json").json
    assert [point["change"] for point in told["points"]] == [-0.5] and told["more"]


def test_one_split_for_the_whole_line(commit, measured, llmos):
    first, second = commit(a="1"), commit(a="2")
    measured(first, "validation", loss=3.0)
    measured(first, loss=2.0)
    measured(second, "validation", loss=1.0)
    assert [point["value"] for point in llmos("log", "--metric", "loss", "--json").json["points"]] == [None, 2.0]
    told = llmos("log", "--metric", "loss", "--split", "validation", "--json").json
    assert [point["value"] for point in told["points"]] == [1.0, 3.0] and told["split"] == "validation"


def test_all_of_them_or_one_line(commit, measured, llmos):
    measured(commit(a="1"), loss=2.0)
    measured(commit(a="2", scratch=True), loss=1.0)
    assert len(llmos("log", "--metric", "loss", "--json").json["points"]) == 1
    assert len(llmos("log", "--metric", "loss", "--all", "--json").json["points"]) == 2


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["--metric", "los"], 4, "did you mean 'loss'?"),
        (["--metric", "loss", "--split", "train"], 4, "it was on test"),
        (["--metric", "loss", "-n", "0"], 2, "from 1 on"),
        (["--metric", "loss", "--graph"], 2, "a form of its own"),
        (["--split", "test"], 2, "--metric"),
    ],
)
def test_what_cannot_be_asked(commit, measured, llmos, words, code, told):
    measured(commit(a="1"), loss=2.0)
    ran = llmos("log", *words)
    assert ran.code == code and told in ran.err


@given(st.lists(st.none() | st.floats(width=64)))
def test_a_line_has_a_place_for_each_value(values):
    drawn = sparkline(values)
    assert len(drawn) == len(values)
    order = [(v, BARS.index(c)) for v, c in zip(values, drawn, strict=True) if c != GAP]
    assert [bar for _, bar in sorted(order)] == sorted(bar for _, bar in order)
    assert all(v is None or v != v or abs(v) == float("inf") for v, c in zip(values, drawn, strict=True) if c == GAP)
    assert max((bar for _, bar in order), default=0) in (0, 4, 7)


def test_a_metric_has_a_name(ws, llmos, monkeypatch):
    monkeypatch.chdir(ws.root)
    for name in ("", " "):
        assert llmos("log", "--metric", name).code == 2
