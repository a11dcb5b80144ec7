"""Rendering: views as text, results as JSON, events as lines."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmos_cli import ui
from llmos_cli.core.view import Group, Lines, Span, Table, duration, number, size
from llmos_cli.errors import ConfigError, Place, UsageError
from llmos_cli.events import Metric, Note, Progress, Saved


@dataclass(frozen=True)
class TwoWordsResult:
    path: Path
    loss: float
    worst: float = float("nan")
    names: tuple[str, ...] = ("a", "b")

    def view(self) -> str:
        return f"loss {self.loss}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def streams(monkeypatch):
    """stdout and stderr that are no terminals, or both terminals."""

    def make(terminal: bool = False) -> tuple[io.StringIO, io.StringIO]:
        out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        return out, err

    return make


def test_a_table_is_aligned_by_what_is_in_it():
    table = Table(
        ["layer", "bits", "error"], [["q_proj", 4, 0.123456], [Span("日本", "name"), 16, None]], title="layers"
    )
    assert ui.render(table) == "layers\nlayer   bits   error\nq_proj     4  0.1235\n日本      16       —\n"


def test_a_table_without_headers_has_no_header_line():
    assert ui.render(Table(["", ""], [["a", "b"]], align="ll")) == "a  b\n"


def test_a_group_separates_its_parts_and_skips_empty_ones():
    assert ui.render(Group(["a", Lines([]), Lines(["b", ("c", Span("d", "id"))])])) == "a\n\nb\ncd\n"


def test_colour_marks_meaning_and_only_on_a_terminal(streams, monkeypatch):
    line = Lines([("on ", Span("main", "name"))])
    assert ui.render(line, colour=True) == "on \x1b[36mmain\x1b[0m\n"
    monkeypatch.delenv("NO_COLOR")
    out, _ = streams(terminal=True)
    ui.Ui().show(type("Result", (), {"view": lambda self: line})())
    assert "\x1b[36m" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out, _ = streams(terminal=True)
    ui.Ui().show(type("Result", (), {"view": lambda self: line})())
    assert out.getvalue() == "on main\n"


def test_a_table_on_a_terminal_says_the_same():
    rows = [["q_proj", 4], ["k_proj", 16]]
    words = (
        ui.render(Table(["layer", "bits"], rows), colour=True, width=60)
        .replace("\x1b[1m", "")
        .replace("\x1b[0m", "")
        .split()
    )
    assert [word for word in words if word.strip("─")] == ["layer", "bits", "q_proj", "4", "k_proj", "16"]


def test_json_is_the_result_itself(streams):
    out, _ = streams()
    ui.Ui(json=True).show(TwoWordsResult(Path("a/b"), 1.5))
    expected = {"schema": "llmos.two-words/1", "path": "a/b", "loss": 1.5, "worst": None, "names": ["a", "b"]}
    assert json.loads(out.getvalue()) == expected


def test_off_a_terminal_progress_is_a_few_lines(streams):
    _, err = streams()
    shown = ui.Ui()
    for step in range(1, 101):
        shown.emit(
            Progress(
                "train",
                step,
                100,
                values={"loss": 4.0 / step},
                rate=1234.5,
                rate_unit="tokens",
                elapsed=9.0,
                eta=75.0,
                memory=1_200_000_000,
            )
        )
    assert err.getvalue().splitlines() == [
        "train 1/100 steps  loss 4  1,234 tokens/s  eta 1m15s  1.2 GB",
        "train 100/100 steps  loss 0.04  1,234 tokens/s  in 9.0s  1.2 GB",
    ]


def test_on_a_terminal_progress_is_one_line_that_moves(streams):
    out, err = streams(terminal=True)
    shown = ui.Ui()
    shown.emit(Progress("train", 1, 2))
    shown.emit(Progress("train", 2, 2))
    shown.emit(Note("done"))
    assert err.getvalue() == "train 1/2 steps\r\x1b[2Ktrain 2/2 steps\r\x1b[2Kdone\n"
    assert out.getvalue() == ""


def test_quiet_lets_only_warnings_through(streams):
    _, err = streams()
    shown = ui.Ui(quiet=True)
    for event in (
        Note("a"),
        Note("b", level="warning"),
        Saved("0" * 64),
        Progress("train", 1, 1),
        Metric("loss", 1.0, step=1),
    ):
        shown.emit(event)
    assert err.getvalue() == "warning: b\n"


def test_what_happens_is_told(streams):
    _, err = streams()
    shown = ui.Ui()
    shown.emit(Saved("0123456789" * 6 + "abcd", moved="main"))
    shown.emit(Metric("loss", 1.23456, split="validation", step=1200))
    assert err.getvalue() == "saved 012345678901 (main)\nstep 1,200  validation loss 1.235\n"


def test_an_error_is_a_sentence_its_place_and_a_hint(streams):
    out, err = streams()
    ui.Ui().error(ConfigError("no such key", hint="look", place=Place("a.yaml", 2, 3, "2 | x\n  |   ^")))
    assert err.getvalue() == "error: no such key\n  a.yaml:2:3\n  2 | x\n    |   ^\nhint: look\n"
    assert out.getvalue() == ""
    out, _ = streams()
    ui.Ui(json=True).error(UsageError("no", hint="h"))
    assert json.loads(out.getvalue()) == {"schema": "llmos.error/1", "error": {"code": 2, "message": "no", "hint": "h"}}


def test_confirming_needs_somebody_there(streams, monkeypatch):
    streams()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not ui.Ui().confirm("really?")


def test_numbers_for_people():
    assert [size(0), size(999), size(1_500_000), size(250e9), size(3e12)] == [
        "0 B",
        "999 B",
        "1.5 MB",
        "250 GB",
        "3.0 TB",
    ]
    assert [duration(0.25), duration(59.4), duration(75), duration(3700)] == ["0.2s", "59s", "1m15s", "1h01m"]
    assert [number(1.88612), number(64.0), number(1e-5), number(float("nan"))] == ["1.886", "64", "1e-05", "nan"]
