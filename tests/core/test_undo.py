"""undo and redo: whatever was done, taking it back gives the workspace as it was, and doing it again gives it as it became."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos_cli.core.operation import Change
from llmos_cli.core.oplog import KEPT, WINDOW
from llmos_cli.core.refs import HEAD, HEADS, STAGES, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, NotFound, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.branch import branch, delete_branch, rename_branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import duration, gc
from llmos_cli.operations.op import op_log
from llmos_cli.operations.push import push
from llmos_cli.operations.redo import redo
from llmos_cli.operations.rm import rm
from llmos_cli.operations.tag import delete_tag, tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import commit_to

NAMES = ["one", "two", "one/two"]
REVS = ["HEAD", "HEAD~1", "main", "one", "two", "one/two"]


def do(ws: Workspace, verb: str, name: str, rev: str) -> None:
    """What is refused (there is no such tag, it is in use) does nothing, which is as good."""
    acts: dict[str, Callable[[], Any]] = {
        "commit": lambda: commit_to(ws, {"a": rev, "b": name}),
        "detached": lambda: commit_to(ws, {"a": rev}, move=False),
        "tag": lambda: tag(ws, name, rev, force=True),
        "tag -d": lambda: delete_tag(ws, name),
        "branch": lambda: branch(ws, name, rev, force=True),
        "branch -d": lambda: delete_branch(ws, name),
        "branch -m": lambda: rename_branch(ws, name, NAMES[NAMES.index(name) - 1]),
        "checkout": lambda: checkout(ws, rev),
        "rm": lambda: rm(ws, [rev], force=True),
        "remote add": lambda: remotes.add(ws, name, f"/nowhere/{name}"),
        "remote rm": lambda: remotes.remove(ws, name),
        "gc": lambda: gc(ws, expire="now"),
    }
    with contextlib.suppress(LlmosError):
        acts[verb]()


VERBS = ["commit", "detached", "tag", "tag -d", "branch", "branch -d", "branch -m", "checkout", "rm", "remote add", "remote rm", "gc"]  # fmt: skip


def seen(ws: Workspace) -> tuple[Any, ...]:
    """All that an operation may change, and whether the weights of what is named are there."""
    ws = Workspace(ws.root)
    refs = {prefix + name: value for prefix in (HEADS, TAGS, STAGES) for name, value in ws.refs.under(prefix).items()}
    settings_file = ws.root / "llmos.yaml"
    readable = {value for value in refs.values() if value not in ws.dropped}
    for value in readable:
        ws.checkpoint(value)
    return ws.refs.read(HEAD), refs, readable, ws.dropped.all(), settings_file.read_text()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(VERBS), st.sampled_from(NAMES), st.sampled_from(REVS)), max_size=12))
def test_whatever_was_done_is_undone_and_done_again(scratch: Path, steps: list[tuple[str, str, str]]) -> None:
    shutil.rmtree(scratch / "undone", ignore_errors=True)
    ws = Workspace.create(scratch / "undone")
    states = [seen(ws)]
    for step in steps:
        count = len(reversible(ws))
        do(ws, *step)
        if len(reversible(ws)) > count:
            states.append(seen(ws))
        else:
            assert seen(ws) == states[-1]
    for before in states[-2::-1]:
        undo(ws)
        assert seen(ws) == before
    for after in states[1:]:
        redo(ws)
        assert seen(ws) == after
    assert fsck(ws).problems == ()


def reversible(ws: Workspace) -> list[str]:
    return [operation.id for operation in ws.oplog.operations() if operation.changes]


def test_rm_is_undone(ws, commit, llmos, monkeypatch):
    monkeypatch.chdir(ws.root)
    first = commit(a="1" * 1000)
    commit(a="2")
    removed = llmos("rm", first.id[:12])
    assert "`llmos undo` brings them back" in removed.out and "1.0 kB" in removed.out
    assert f"weights of {first.id[:12]} removed" in llmos("op", "log").out
    assert f"  weights of {first.id[:12]} restored\n" in llmos("undo").out
    assert ws.checkpoint(first.id).path.joinpath("a").read_text() == "1" * 1000
    assert llmos("redo").code == 0 and first.id in ws.dropped
    assert llmos("rm", first.id[:12]).code == 0  # once more does nothing
    assert [each.name for each in ws.oplog.operations()][-1].startswith("redo rm")


def test_what_gc_freed_does_not_come_back_and_undo_says_so(ws, commit, llmos, monkeypatch):
    monkeypatch.chdir(ws.root)
    first, second, third = commit(a="1"), commit(a="2"), commit(a="3")
    tag(ws, "kept")
    rm(ws, [first.id])
    gc(ws, window="now", keep_last=1)
    last = op_log(ws, limit=1).operations[0]
    assert (last.name, set(last.drops)) == ("gc: weights of 2 checkpoints", {first.id, second.id})
    assert "freed for good: the weights of" in llmos("op", "log").out
    with pytest.raises(UsageError, match=f"operation {last.id} .* cannot be undone: what it removed is gone for good"):
        undo(ws, last.id)
    with pytest.raises(NotFound, match=f"cannot undo rm .*: the weights of {first.id[:12]} are gone for good"):
        undo(ws)
    tagged = next(each for each in ws.oplog.operations() if each.name == "tag kept")
    told = llmos("undo", tagged.id).out
    assert "what `gc` freed since then does not come back: the weights of " in told
    assert all(each.id[:12] in told for each in (first, second)) and third.id[:12] in told
    assert ws.refs.read(TAGS + "kept") is None
    redo(ws)
    assert ws.refs.read(TAGS + "kept") == third.id


def test_gc_within_the_window_stands_in_no_ones_way(ws, commit):
    commit(a="1")
    trial = commit(a="2", move=False)
    tag(ws, "base")
    undo(ws)
    assert [each.kind for each in gc(ws, expire="now").garbage] == ["checkpoint"]
    assert op_log(ws, limit=1).operations[0].collects == (trial.id,)
    redo(ws)  # gc forgot nothing that could be done again
    assert undo(ws).operation.name == "undo tag base"


def test_weights_that_a_remote_brought_back_are_as_good_as_undone(ws, commit, tmp_path):
    first = commit(a="1")
    commit(a="2")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    rm(ws, [first.id])
    gc(ws, window="now")
    fetch(ws, weights=[first.id])
    assert ws.checkpoint(first.id) and undo(ws).operation.name.startswith("undo rm")
    assert redo(ws).operation.name.startswith("redo rm") and first.id in ws.dropped
    undo(ws)
    assert ws.checkpoint(first.id) and fsck(ws).problems == ()


def test_an_operation_as_long_as_any_is_finished_once(ws):
    """What describes a great deal of data is longer than what is read of the log's end."""
    ws.oplog.apply("long", [Change("configs/long.yaml", None, "x" * (3 << 20))])
    (ws.dot / "pending.json").write_bytes(ws.oplog.path.read_bytes())  # a kill just after it was logged
    ws.oplog.settle()
    assert [each.name for each in ws.oplog.operations()] == ["long"] and not (ws.dot / "pending.json").exists()
    assert undo(ws).operation.name == "undo long" and not (ws.root / "configs" / "long.yaml").exists()


def test_gc_keeps_what_undo_reaches_unless_told() -> None:
    from llmos_cli.commands.gc import gc as command

    told = signature(command).parameters
    assert told["expire"].default == told["window"].default == KEPT and duration(KEPT) == WINDOW
