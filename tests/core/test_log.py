"""log: ancestors, everything, the graph, and the line that was left."""

from __future__ import annotations

from typing import Any

from llmos_cli.operations.graph import rows
from llmos_cli.operations.log import log
from llmos_cli.ui import render


def lines(result: Any) -> list[str]:
    return render(result.view()).splitlines()


def test_follows_parents_and_names_refs(ws, commit, llmos, monkeypatch):
    first, second = commit(a="1"), commit("prune", a="2")
    monkeypatch.chdir(ws.root)
    assert llmos("tag", "base", "HEAD~1").code == 0
    told = [line.split("  ") for line in llmos("log").out.splitlines()]
    assert [(line[0], line[-1]) for line in told] == [(second.id[:12], "(HEAD -> main)"), (first.id[:12], "(base)")]
    assert llmos("log", "--oneline", "base").out == f"{first.id[:12]}  train m  (base)\n"
    assert [each["id"] for each in llmos("log", "--json").json["checkpoints"]] == [second.id, first.id]


def test_limit_says_whether_there_is_more(ws, commit):
    commit(a="1"), commit(a="2"), commit(a="3")
    assert [log(ws, limit=n).more for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert len(log(ws, limit=2).checkpoints) == 2


def test_before_the_first_checkpoint(ws):
    assert lines(log(ws)) == ["no checkpoints yet: `llmos train` makes the first"]


def test_training_from_scratch_leaves_a_line_behind(ws, commit):
    old = commit(a="1")
    new = commit(a="2", scratch=True)
    assert [each.id for each in log(ws).checkpoints] == [new.id]
    assert lines(log(ws))[-1].startswith(f"an older, unrelated line was left at {old.id[:12]}, ")
    assert {each.id for each in log(ws, everything=True).checkpoints} == {old.id, new.id}


def test_a_line_that_was_continued_is_not_called_left(ws, commit):
    commit(a="1"), commit(a="2")
    ws.oplog.undo(), ws.oplog.redo()
    assert log(ws).left is None


def draw(lineage: dict[str, str]) -> list[str]:
    """Each letter's parents; the graph with its letters."""
    found = []
    for row, name in zip(rows(list(lineage.items())), lineage, strict=True):
        found += [f"{row.node} {name}", *row.edges]
    return found


def test_graph_of_one_line():
    assert draw({"c": "b", "b": "a", "a": ""}) == ["* c", "* b", "* a"]


def test_graph_of_a_fork():
    assert draw({"d": "a", "c": "b", "b": "a", "a": ""}) == ["* d", "| * c", "| * b", "|/", "* a"]


def test_graph_of_two_parents():
    assert draw({"d": "bc", "c": "a", "b": "a", "a": ""}) == ["* d", "|\\", "| * c", "* | b", "|/", "* a"]


def test_graph_of_unrelated_lines():
    assert draw({"b": "", "a": ""}) == ["* b", "* a"]


def test_graph_of_a_line_that_ends_between_others():
    assert draw({"d": "a", "c": "", "b": "a", "a": ""}) == ["* d", "| * c", "| * b", "|/", "* a"]


def test_graph_goes_with_the_log(ws, commit):
    from llmos_cli.operations.checkout import checkout

    first = commit(a="1")
    left = commit(a="2")
    checkout(ws, "HEAD~1", create="side")
    right = commit(a="3")
    drawn = [line.partition("  train")[0] for line in lines(log(ws, everything=True, graph=True))]
    newest, other = log(ws, everything=True, graph=True).checkpoints[:2]
    assert {newest.id, other.id} == {left.id, right.id}
    assert drawn == [f"*   {newest.id[:12]}", f"| * {other.id[:12]}", "|/", f"*   {first.id[:12]}"]
