"""tag, branch, checkout, undo: the commands that move names."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(autouse=True)
def inside(ws, monkeypatch):
    monkeypatch.chdir(ws.root)


def test_tag_stays_where_it_is(ws, commit, llmos):
    first = commit(a="1")
    assert llmos("tag", "base").out == f"tag base names {first.id[:12]}\n"
    second = commit(a="2")
    assert ws.resolve("base") == first.id
    again = llmos("tag", "base")
    assert (again.code, again.err.splitlines()) == (
        2,
        [f"error: tag base names {first.id[:12]} already", "hint: `llmos tag -f base HEAD` moves it"],
    )
    assert llmos("tag", "-f", "base").out == f"tag base names {second.id[:12]}; it named {first.id[:12]}\n"
    assert llmos("tag").out.startswith(f"base  {second.id[:12]}  train m  ")
    assert llmos("tag", "-d", "base").out == f"tag base deleted; it named {second.id[:12]}\n"
    assert llmos("tag").out == "no tags yet\n"
    assert llmos("tag", "-d", "base").code == 4


def test_branches(ws, commit, llmos):
    first = commit(a="1")
    assert llmos("branch", "try").out == f"branch try is at {first.id[:12]}\n"
    assert llmos("checkout", "try").out == f"on branch try, at {first.id[:12]}\n"
    second = commit(a="2")
    assert (ws.resolve("main"), ws.resolve("try")) == (first.id, second.id)
    assert [line.split()[:3] for line in llmos("branch").out.splitlines()] == [
        ["main", first.id[:12], "train"],
        ["*", "try", second.id[:12]],
    ]
    assert llmos("branch", "-d", "try").code == 2
    assert llmos("branch", "-m", "try", "best").out == "branch try is called best now\n"
    assert ws.head().branch == "best"
    assert llmos("checkout", "main").code == 0
    assert llmos("branch", "-d", "best").out == f"branch best deleted; it was at {second.id[:12]}\n"
    assert ws.resolve(second.id[:8]) == second.id


def test_a_branch_and_a_folder_of_branches_do_not_go_together(commit, llmos):
    commit(a="1")
    assert llmos("branch", "a/b").code == 0
    refused = llmos("branch", "a")
    assert (refused.code, refused.err.splitlines()[0]) == (2, "error: branch a/b stands in the way of a")


def test_checkout_of_a_checkpoint_detaches_head(ws, commit, llmos):
    first, second = commit(a="1"), commit(a="2")
    assert llmos("checkout", "HEAD~1").out == f"HEAD is detached at {first.id[:12]}\n"
    assert llmos("checkout", "-b", "side").out == f"on branch side, at {first.id[:12]}\n"
    assert llmos("checkout", "main").out == f"on branch main, at {second.id[:12]}\n"
    assert llmos("checkout", "nowhere").code == 4


def test_checkout_of_a_new_branch_before_the_first_checkpoint(ws, llmos):
    assert llmos("checkout", "-b", "first").out == "on branch first, which has no checkpoint yet\n"
    assert ws.head().branch == "first"


def test_checkout_configs_restores_what_made_the_checkpoint(ws, commit_with_config, llmos):
    path = ws.configs / "train.yaml"
    first = commit_with_config("seed: 1  # mine\n")
    commit_with_config("seed: 2\n")
    restored = llmos("checkout", first.id[:12], "--configs")
    assert restored.out.splitlines() == [f"HEAD is detached at {first.id[:12]}", "restored configs/train.yaml"]
    assert path.read_text() == "seed: 1  # mine\n"
    assert llmos("undo").code == 0
    assert (path.read_text(), ws.head().branch) == ("seed: 2\n", "main")


def test_checkout_configs_never_overwrites_what_exists_nowhere_else(ws, commit_with_config, llmos):
    path = ws.configs / "train.yaml"
    first = commit_with_config("seed: 1\n")
    commit_with_config("seed: 2\n")
    path.write_text("seed: 3  # an idea\n")
    refused = llmos("checkout", first.id[:12], "--configs")
    assert refused.code == 6
    assert (
        refused.err.splitlines()[0]
        == "error: configs/train.yaml was edited since its last run, and nothing else holds that text"
    )
    assert (path.read_text(), ws.head().branch) == ("seed: 3  # an idea\n", "main")
    assert llmos("checkout", first.id[:12], "--configs", "--force").code == 0
    assert path.read_text() == "seed: 1\n"


def test_undo_and_redo_and_their_log(ws, commit, llmos):
    first, second = commit(a="1"), commit(a="2")
    assert llmos("undo").out.splitlines() == ["undo train on main", f"  main {second.id[:12]} -> {first.id[:12]}"]
    assert ws.resolve() == first.id
    assert llmos("redo").code == 0
    assert ws.resolve() == second.id
    assert [line.split("  ")[2] for line in llmos("op", "log", "-n", "2").out.splitlines()] == [
        "redo train on main",
        "undo train on main",
    ]
    assert [each["name"] for each in llmos("op", "log", "--json").json["operations"]][-1] == "train on main"
    assert (llmos("undo").code, llmos("undo").code) == (0, 0)
    nothing = llmos("undo", "--json")
    assert (nothing.code, json.loads(nothing.out)["error"]["message"]) == (2, "there is nothing to undo")
