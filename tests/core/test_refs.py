"""Refs: what may be called what, and the operation log that moves them, undone and redone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEADS, TAGS, Head, check_name
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, Corrupt, UsageError

A, B, C = "a" * 64, "b" * 64, "c" * 64


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_a_name_is_refused_or_can_be_written_and_listed(name: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        ws = Workspace.create(Path(root) / "w")
        try:
            ref = TAGS + check_name("tag", name)
        except UsageError:
            return
        ws.refs.write(ref, A)
        assert ws.refs.under(TAGS) == {name: A}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-x",
        ".x",
        "x.",
        "a..b",
        "a b",
        "a~1",
        "a^",
        "a:b",
        "HEAD",
        "@",
        "a@{1}",
        "a//b",
        "/a",
        "a/",
        "x.lock",
        "a\\b",
        "a\nb",
        A,
    ],
)
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_name("branch", name)


def test_head_is_a_branch_without_checkpoint_at_first(ws: Workspace) -> None:
    assert ws.head() == Head("main", None)


def test_a_ref_that_holds_nonsense_is_corrupt(ws: Workspace) -> None:
    (ws.dot / "refs/heads/main").write_text("not an id\n")
    with pytest.raises(Corrupt, match="refs/heads/main holds 'not an id'"):
        ws.head()


def test_all_changes_or_none(ws: Workspace) -> None:
    ws.oplog.apply("one", [Change(TAGS + "t", None, A)])
    with pytest.raises(Conflict, match="tags/t is at aaaaaaaaaaaa and not at nothing any more"):
        ws.oplog.apply("two", [Change(HEADS + "main", None, B), Change(TAGS + "t", None, B)])
    assert ws.refs.read(HEADS + "main") is None


def test_an_operation_that_was_cut_off_is_finished_by_the_next(ws: Workspace) -> None:
    ws.oplog.apply("one", [Change(TAGS + "t", None, A), Change(TAGS + "u", None, A)])
    line = ws.oplog.path.read_text()
    # As a kill leaves it that came after the first of two refs and before the log.
    (ws.dot / "pending.json").write_text(line)
    ws.oplog.path.unlink()
    ws.refs.write(TAGS + "u", None)
    ws.oplog.apply("next", [Change(TAGS + "v", None, B)])
    assert ws.refs.under(TAGS) == {"t": A, "u": A, "v": B}
    assert [operation.name for operation in ws.oplog.operations()] == ["one", "next"]
    assert not (ws.dot / "pending.json").exists()


def test_an_operation_on_a_full_disk_did_not_happen(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws.oplog.apply("one", [Change(TAGS + "t", None, A)])
    (ws.dot / "refs" / "heads" / "main").mkdir()
    (ws.dot / "refs" / "heads" / "main" / ".nobodys").touch()  # writing the second ref fails
    with pytest.raises(Conflict, match=r"\.llmos/refs/heads/main/\.nobodys stands in the way of refs/heads/main"):
        ws.oplog.apply("two", [Change(TAGS + "t", A, B), Change(HEADS + "main", None, B)])
    assert ws.refs.under(TAGS) == {"t": A}
    assert [operation.name for operation in ws.oplog.operations()] == ["one"]


@pytest.mark.parametrize("kind", [HEADS, TAGS, "refs/stages/", "refs/remotes/origin/heads/"])
def test_a_name_that_went_leaves_room_for_what_it_was_inside_of(ws: Workspace, kind: str) -> None:
    ws.refs.write(f"{kind}a/b/c", A)
    ws.refs.write(f"{kind}a/d", A)
    ws.refs.write(f"{kind}a/b/c", None)
    assert ws.refs.under(kind) == {"a/d": A} and not (ws.dot / kind / "a" / "b").exists()
    ws.refs.write(f"{kind}a/d", None)
    (ws.dot / kind / "a" / "b").mkdir(parents=True)  # as a kill leaves it
    ws.refs.write(f"{kind}a", B)
    assert ws.refs.under(kind) == {"a": B}
    ws.refs.write(f"{kind}a", None)
    assert (ws.dot / "refs" / kind.split("/")[1]).is_dir()


@pytest.mark.parametrize(("there", "made"), [("a", "A"), ("A/b", "a"), ("a", "A/b"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_some_disks_take_for_one_are_not_made_both(ws: Workspace, there: str, made: str) -> None:
    """Asked under the lock, so that of two who ask at once one is refused; another prefix is another folder."""
    ws.oplog.apply("one", [Change(TAGS + there, None, A)])
    with pytest.raises(Conflict, match=r"stands in the way of tag"):
        ws.oplog.apply("two", [Change(TAGS + made, None, A)])
    ws.oplog.apply("moved", [Change(TAGS + there, A, None), Change(TAGS + made, None, A)])
    ws.oplog.apply("a branch", [Change(HEADS + there, None, A)])
    assert ws.refs.under("refs/") == {f"tags/{made}": A, f"heads/{there}": A}


def test_what_stands_in_the_way_is_named(ws: Workspace) -> None:
    """Before anything is written; what the same operation takes away is in nobody's way, whatever comes first."""
    for checkpoint in (A, B):
        (ws.root / "checkpoints" / checkpoint).mkdir(parents=True)
    first = ws.oplog.apply("one", [Change(HEADS + "a", None, A)])
    ws.oplog.apply("two", [Change(HEADS + "a/b", None, B), Change(HEADS + "a", A, None)])
    for refused in (
        lambda: ws.oplog.apply("three", [Change(TAGS + "t", None, A), Change(HEADS + "a", None, A)]),
        lambda: ws.oplog.apply("three", [Change(HEADS + "a/b/c", None, A)]),
    ):
        with pytest.raises(Conflict, match=r"branch a/b stands in the way of branch a") as error:
            refused()
        assert error.value.hint == "`llmos branch -m a/b NEW` gives it another name"
    assert ws.refs.under("refs/") == {"heads/a/b": B} and not (ws.dot / "pending.json").exists()
    ws.oplog.undo()
    assert ws.refs.under("refs/") == {"heads/a": A}
    ws.oplog.undo(first.id)
    assert ws.refs.under("refs/") == {}


def test_a_line_cut_off_by_a_crash_is_skipped_and_not_glued_to(ws: Workspace) -> None:
    ws.oplog.apply("one", [Change(TAGS + "t", None, A)])
    with ws.oplog.path.open("a") as file:
        file.write('{"id": "dead')
    ws.oplog.apply("two", [Change(TAGS + "t", A, B)])
    assert [operation.name for operation in ws.oplog.operations()] == ["one", "two"]


def test_files_are_undone_too(ws: Workspace) -> None:
    path = ws.configs / "train.yaml"
    path.write_text("seed: 0\n")
    ws.oplog.apply("tune --apply", [Change("configs/train.yaml", "seed: 0\n", "seed: 1\n")])
    assert path.read_text() == "seed: 1\n"
    ws.oplog.undo()
    assert path.read_text() == "seed: 0\n"


def test_undo_refuses_when_the_ref_has_moved_by_other_means(ws: Workspace) -> None:
    ws.oplog.apply("one", [Change(TAGS + "t", None, A)])
    ws.refs.write(TAGS + "t", C)
    with pytest.raises(Conflict, match="tags/t is at cccccccccccc and not at aaaaaaaaaaaa any more"):
        ws.oplog.undo()


def test_undo_of_one_that_is_not_the_last(ws: Workspace) -> None:
    first = ws.oplog.apply("one", [Change(TAGS + "t", None, A)])
    ws.oplog.apply("two", [Change(TAGS + "u", None, A)])
    ws.oplog.undo(first.id[:5])
    assert ws.refs.under(TAGS) == {"u": A}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "undo", "redo"]), max_size=12))
def test_undo_and_redo_walk_a_history(steps: list[str]) -> None:
    """Against the obvious model: a list of states and a place in it."""
    with tempfile.TemporaryDirectory() as root:
        ws = Workspace.create(Path(root) / "w")
        for name in "abc":
            (ws.root / "checkpoints" / (name * 64)).mkdir(parents=True)
        states: list[str | None] = [None]
        at = 0
        for step in steps:
            if step in "abc":
                value = step * 64
                if value == states[at]:
                    continue
                ws.oplog.apply(step, [Change(TAGS + "t", states[at], value)])
                states = [*states[: at + 1], value]
                at += 1
            elif (step == "undo" and at == 0) or (step == "redo" and at == len(states) - 1):
                with pytest.raises(UsageError, match=f"there is nothing to {step}"):
                    ws.oplog.undo() if step == "undo" else ws.oplog.redo()
            else:
                at += 1 if step == "redo" else -1
                ws.oplog.undo() if step == "undo" else ws.oplog.redo()
            assert ws.refs.read(TAGS + "t") == states[at]


def test_many_processes_name_things_at_once(ws: Workspace) -> None:
    """Each of four processes makes five tags and moves one branch that all of them fight for."""
    pids = [_fork(ws, number) for number in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert len(ws.refs.under(TAGS)) == 20
    operations = list(ws.oplog.operations())
    moves = [operation.changes[0] for operation in operations if operation.name == "move"]
    assert len(operations) == 20 + len(moves)
    # The winners form one chain: nobody's move was lost.
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
    assert ws.refs.read(HEADS + "main") == moves[-1].after


def _fork(ws: Workspace, number: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for step in range(5):
            ws.oplog.apply("tag", [Change(f"{TAGS}{number}-{step}", None, A)])
            with contextlib.suppress(Conflict):
                ws.oplog.apply("move", [Change(HEADS + "main", ws.refs.read(HEADS + "main"), f"{number}{step}" * 32)])
        os._exit(0)
    finally:
        os._exit(1)
