"""What is asked of the log of operations: of a long one as little is parsed as of a short one, and the answer is what a parser says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.synthetic import make
from llmos_cli.core import lines
from llmos_cli.core.audit import Author
from llmos_cli.core.dropped import FOLDER
from llmos_cli.core.history import History
from llmos_cli.core.operation import Change, Operation, written
from llmos_cli.core.refs import DATA, HEAD, HEADS, SYMBOLIC, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.audit import audit
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.log import log
from llmos_cli.operations.op import op_log
from llmos_cli.operations.tag import tag


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("few") / "w", checkpoints=3, runs=3, moves=10)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("many") / "w", checkpoints=3, runs=3, moves=400)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ws: log(ws, limit=20),
        lambda ws: gc(ws, dry_run=True),
        lambda ws: op_log(ws, limit=5),
        lambda ws: audit(ws, limit=5),
    ],
    ids=["log", "gc", "op log", "audit"],
)
def test_a_long_log_is_not_parsed(
    ask: Callable[[Workspace], object], few: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed(ask, many, monkeypatch) == parsed(ask, few, monkeypatch)


def parsed(ask: Callable[[Workspace], object], root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many texts of JSON are; the index is made before."""
    log(Workspace(root), limit=1)
    loads, seen = json.loads, []

    def counted(text: Any) -> Any:
        seen.append(text)
        return loads(text)

    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", counted)
        ask(Workspace(root))
    return len(seen)


def test_the_long_log_is_a_sound_one(many: Path) -> None:
    ws = Workspace(many)
    assert fsck(ws).problems == ()
    assert [each.name for each in op_log(ws, limit=2).operations] == ["tag moved", "tag moved"]
    assert len(op_log(ws).operations) == 403
    assert [each.number for each in audit(ws, limit=3).records] == [400, 399, 398]


def test_the_line_that_was_left_is_found_among_moves_of_a_tag(ws: Workspace, commit: Any) -> None:
    old, new = commit(a="1").id, commit(scratch=True, a="2").id
    for checkpoint in (old, new, old, new):
        tag(ws, "now", checkpoint, force=True)
    left = log(ws).left
    assert left is not None and left.checkpoint == old


WORDS = st.sampled_from(["", "train on main", "a\\b", 'of "x"', "é", '", "before": null', "]}", "\n"]) | st.text(
    max_size=5
)
IDS = st.sampled_from(["1" * 64, "2" * 64, "3" * 64, SYMBOLIC + HEADS + "main"])
REFS = st.sampled_from([HEAD, HEADS + "main", TAGS + 'a"b', DATA + "rows", FOLDER + "4" * 64, "configs/train.yaml"])
CHANGES = st.builds(Change, REFS, st.none() | IDS | WORDS, st.none() | IDS)
OPERATIONS = st.builds(
    Operation,
    WORDS,
    WORDS,
    st.lists(CHANGES, max_size=2).map(tuple),
    st.sampled_from([1.0, 5, 5.5, 9.25, 1e-7, 1e22]),
    WORDS,
    st.sampled_from(["do", "undo"]),
    WORDS,
    collects=st.lists(IDS, max_size=1).map(tuple),
    by=st.none() | st.builds(Author, WORDS, WORDS, WORDS),
)


@given(st.lists(OPERATIONS, max_size=3))
def test_what_is_protected_is_what_a_parser_says(
    tmp_path_factory: pytest.TempPathFactory, logged: list[Operation]
) -> None:
    history = History(tmp_path_factory.getbasetemp() / "logged.jsonl")
    history.path.write_text("".join(map(written, logged)))
    values = {
        value
        for operation in history.operations()
        if operation.time >= 5 or "e" in repr(operation.time)
        for change in operation.changes
        if not change.what.startswith(DATA)
        for value in ([change.before, change.after] if change.is_ref else [change.removes])
    }
    assert history.protected(5) == {value for value in values if value and not value.startswith(SYMBOLIC)}


@given(st.lists(st.sampled_from([b"", b"a", b"xa", b"ax a", b"xx"]), max_size=5).map(b"\n".join))
def test_lines_from_the_end_on_and_those_that_match(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "text"
    path.write_bytes(text)
    assert [*lines.backwards(path)] == (text.split(b"\n")[::-1] if text else [])
    assert [*lines.matching(path, rb"a")] == [line for line in text.split(b"\n") if b"a" in line]
    assert [*lines.matching(path, rb"x.*a")] == [line for line in text.split(b"\n") if line in (b"xa", b"ax a")]
    assert [*lines.backwards(path.with_name("none"))] == [*lines.matching(path.with_name("none"), rb"a")] == []
