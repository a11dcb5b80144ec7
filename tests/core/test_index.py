"""The index: a cache that nobody misses."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core import ancestry, manifest
from llmos_cli.core.manifest import FileEntry, Made
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Metric


def anew(ws: Workspace) -> Workspace:
    return Workspace(ws.root)


def facts(ws: Workspace) -> Any:
    return [(entry.id, entry.parents) for entry in ws.index.entries()], [
        (r.id, r.status, r.checkpoint) for r in ws.runs.list()
    ]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"not a database" * 500),
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeros inside": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096)),
    "of another version": lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 999").connection.close(),
    "without its tables": lambda path: sqlite3.connect(path).execute("DROP TABLE runs").connection.close(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_is_made_anew_without_a_word(ws: Workspace, commit: Any, damage: str) -> None:
    commit(a="1"), commit(a="2")
    before = facts(ws)
    DAMAGE[damage](ws.dot / "index.sqlite")
    assert facts(anew(ws)) == before


def test_sees_what_came_and_went(ws: Workspace, commit: Any) -> None:
    first = commit(a="1")
    other = anew(ws)
    assert len(other.index.entries()) == 1
    second = commit(a="2")
    assert {entry.id for entry in other.index.entries()} == {first.id, second.id}
    shutil.rmtree(second.path)
    assert {entry.id for entry in other.index.entries()} == {first.id}


def test_the_latest_number_counts(ws: Workspace, commit: Any) -> None:
    checkpoint = commit(a="1")
    for value, at in ((1.5, 20.0), (1.6, 10.0)):
        with ws.begin("eval", config={}) as run:
            run.emit(Metric("accuracy", value, "test", checkpoint=checkpoint.id, at=at))
            run.emit(Metric("accuracy", 0.1, "test", at=30.0))
    measured = ws.metrics(checkpoint.id)
    assert {key: metric.value for key, metric in measured.items()} == {("accuracy", "test"): 1.5}


def test_numbers_of_a_run_that_goes_on_are_seen_at_once(ws: Workspace, commit: Any) -> None:
    checkpoint = commit(a="1")
    other = anew(ws)
    with ws.begin("eval", config={}) as run:
        assert other.metrics(checkpoint.id) == {}
        run.emit(Metric("accuracy", 0.5, "test", checkpoint=checkpoint.id))
        assert other.metrics(checkpoint.id)["accuracy", "test"].value == 0.5


def test_numbers_go_with_the_run_that_measured_them(ws: Workspace, commit: Any) -> None:
    checkpoint = commit(a="1")
    with ws.begin("eval", config={}) as run:
        run.emit(Metric("accuracy", 0.5, checkpoint=checkpoint.id))
    assert ws.metrics(checkpoint.id)
    shutil.rmtree(run.path)
    assert not ws.metrics(checkpoint.id)


def test_a_checkpoint_whose_manifest_is_broken_is_left_out(ws: Workspace, commit: Any) -> None:
    first, second = commit(a="1"), commit(a="2")
    (ws.dot / "index.sqlite").unlink()
    (second.path / "manifest.json").chmod(0o644)
    (second.path / "manifest.json").write_text("{")
    assert [entry.id for entry in anew(ws).index.entries()] == [first.id]


def test_works_in_a_forked_child(ws: Workspace, commit: Any) -> None:
    commit(a="1")
    assert len(ws.index.entries()) == 1
    pid = os.fork()
    if not pid:
        os._exit(0 if len(ws.index.entries()) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 7), max_size=3), max_size=8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7))
)
def test_a_walk_finds_the_line_what_is_not_in_it_and_where_it_breaks_off(
    graph: list[set[int]], asked: set[int], gone: set[int]
) -> None:
    """`graph`: the parents of each checkpoint among those before it; some of them are not there any more."""
    with tempfile.TemporaryDirectory() as root:
        ws, ids = Workspace.create(Path(root) / "w"), list[str]()
        for number, parents in enumerate(graph):
            tree = {"a": FileEntry(f"{number:064x}", 1)}
            made = Made("train", tuple(ids[each] for each in parents if each < number), {}, {}, {}, 0, "2026")
            ids.append(manifest.manifest(tree, made).id)
            if number not in gone:
                (ws.checkpoints / ids[-1]).mkdir()
                manifest.manifest(tree, made).write(ws.checkpoints / ids[-1])
        roots = {ids[each] for each in asked if each < len(ids)}
        present = {entry.id for entry in ws.index.entries()}
        walked = ancestry.walk(ws, roots)
        assert walked.line == ws.index.line(roots)
        assert (walked.rest, walked.ends) == (present - walked.line, walked.line - present)
        assert ws.index.held() == {f"{number:064x}" for number in range(len(ids)) if number not in gone}
