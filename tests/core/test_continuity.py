"""The log of operations is not believed whatever it says: a lost line or an edited one is found, undo does not follow it, and gc removes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llmos_cli.core.operation import Change, new, written
from llmos_cli.core.refs import HEAD, HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.branch import branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.integrity.begun_anew import OPERATIONS
from llmos_cli.operations.redo import redo
from llmos_cli.operations.tag import delete_tag, tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import Commit
from tests.core.forging import audit_anew


@pytest.fixture
def ids(ws: Workspace, commit: Commit) -> list[str]:
    """Three in a row on main; the first has a tag."""
    made = [commit(operation, a=operation).id for operation in ("train", "prune", "quantize")]
    tag(ws, "base", made[0])
    return made


def rewritten(ws: Workspace, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    lines = [change(json.loads(line)) for line in ws.oplog.path.read_text().splitlines()]
    ws.oplog.path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def without(ws: Workspace, *names: str) -> None:
    rewritten(ws, lambda line: None if line["name"] in names else line)


def told(ws: Workspace) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in fsck(ws).problems]


def test_an_edited_before_is_found_and_not_undone(ws: Workspace, ids: list[str]) -> None:
    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["name"].startswith("quantize"):
            line["changes"][0]["before"] = ids[0]
        return line

    rewritten(ws, edit)
    problem = fsck(ws).problems[0]
    assert problem.where == f"{HEADS}main" and problem.hurts == ("main",)
    assert f"moved it from {ids[0][:12]}, and the one before" in problem.what
    assert f"left it at {ids[1][:12]}" in problem.what
    undo(ws)  # the tag, which is as it was
    with pytest.raises(Corrupt, match="refs/heads/main would go where it may never have been"):
        undo(ws)
    assert ws.refs.read(f"{HEADS}main") == ids[2]


def test_an_edit_that_the_rest_agrees_with_is_found_by_the_audit_log(ws: Workspace, ids: list[str]) -> None:
    """The tag as if it had been made on another checkpoint: the only move of that ref, and the ref with it."""

    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["name"] == "tag base":
            line["changes"][0]["after"] = ids[1]
        return line

    rewritten(ws, edit)
    (ws.dot / TAGS / "base").write_text(f"{ids[1]}\n")
    tagged = next(each for each in ws.oplog.operations() if each.name == "tag base")
    found = f"operation {tagged.id} (`tag base`) was edited: the audit log has the hash of another line"
    assert told(ws) == [f"{OPERATIONS}: {found}"]
    with pytest.raises(Corrupt, match="what `tag base` moved would go where it may never have been"):
        undo(ws, tagged.id)
    assert fsck(ws, accept_loss=[OPERATIONS]).problems == ()
    undo(ws, tagged.id)
    assert ws.refs.read(f"{TAGS}base") is None


def test_records_of_an_older_llmos_say_nothing_of_lines(ws: Workspace, ids: list[str]) -> None:
    audit_anew(ws, lambda record: replace(record, line=""))
    assert told(ws) == [] and undo(ws).operation.name == "undo tag base"
    assert told(ws) == []


@pytest.mark.parametrize("at", range(8))
def test_every_line_that_is_lost_is_found(ws: Workspace, ids: list[str], at: int) -> None:
    branch(ws, "try")
    checkout(ws, "try")
    undo(ws)
    redo(ws)
    lines = ws.oplog.path.read_text().splitlines(keepends=True)
    assert fsck(ws).problems == () and len(lines) == 8
    ws.oplog.path.write_text("".join(lines[:at] + lines[at + 1 :]))
    lost = json.loads(lines[at])
    assert f"{OPERATIONS}: operation {lost['id']} (`{lost['name']}`) is missing: the audit log has it" in told(ws)


def test_gc_does_not_trust_a_log_that_was_shortened(ws: Workspace, ids: list[str]) -> None:
    branch(ws, "main", ids[0], force=True)
    assert gc(ws, expire="now", dry_run=True).garbage == ()
    moves = [each.name for each in ws.oplog.operations() if each.name == "branch main" or "on main" in each.name]
    without(ws, *moves[1:])
    for dry_run in (True, False):
        with pytest.raises(
            Corrupt, match=r"^the log of operations is not all of it, and nothing was removed: operation"
        ):
            gc(ws, expire="now", dry_run=dry_run)
    assert all((ws.checkpoints / each).is_dir() for each in ids)
    assert {each.name for each in gc(ws, expire="now", window="now").garbage} == {*ids[1:]}  # it is not asked


def test_what_was_given_up_is_believed_from_there_on(ws: Workspace, ids: list[str]) -> None:
    branch(ws, "main", ids[0], force=True)
    without(ws, "branch main")
    assert len(told(ws)) == 2  # where main is, and what is missing
    assert len(fsck(ws, repair=True).problems) == 2 and ws.refs.read(f"{HEADS}main") == ids[0]
    assert fsck(ws, accept_loss=[OPERATIONS]).problems == ()
    tag(ws, "later")
    tag(ws, "latest")
    assert fsck(ws).problems == () and gc(ws, expire="now").garbage == ()
    without(ws, "tag later")
    assert (
        [each for each in told(ws) if "is missing" in each] == [each for each in told(ws) if "tag later" in each] != []
    )


def test_what_another_process_finished_is_no_loss(ws: Workspace, ids: list[str]) -> None:
    begun = new("tag mine", [Change(f"{TAGS}mine", None, ids[0])])
    for _ in range(2):  # a kill before it was carried out, and one after it was logged
        (ws.dot / "pending.json").write_text(written(begun))
        Workspace(ws.root).oplog.settle()
        assert ws.refs.read(f"{TAGS}mine") == ids[0] and fsck(ws).problems == ()
    delete_tag(ws, "mine")
    assert fsck(ws).problems == ()


def test_a_ref_that_was_moved_by_hand_and_put_back_is_no_edit(ws: Workspace, ids: list[str], commit: Commit) -> None:
    ws.refs.write(f"{HEADS}main", ids[0])
    assert len(told(ws)) == 1 and fsck(ws, repair=True).problems == ()
    commit(a="4")
    assert fsck(ws).problems == ()
    undo(ws)
    undo(ws)  # the repair too can be taken back
    assert ws.refs.read(f"{HEADS}main") == ids[0] and fsck(ws).problems == ()


BY_HAND: dict[str, tuple[str, str | None, Callable[[Workspace], object]]] = {
    "a tag that is gone is made again": (f"{TAGS}base", None, lambda ws: tag(ws, "base")),
    "a tag that was moved is moved on": (f"{TAGS}base", "HEAD~1", lambda ws: tag(ws, "base", "HEAD", force=True)),
    "a tag that was added is deleted": (f"{TAGS}hand", "HEAD~1", lambda ws: delete_tag(ws, "hand")),
    "a branch that was moved is gone on with": (
        f"{HEADS}main",
        "HEAD~1",
        lambda ws: branch(ws, "main", "base", force=True),
    ),
    "HEAD that names nothing is moved": (HEAD, "ref: refs/heads/nowhere", lambda ws: checkout(ws, "main")),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_what_was_moved_by_hand_is_an_operation_of_its_own(ws: Workspace, ids: list[str], case: str) -> None:
    """Whoever goes on from there says so, breaks no log by it, and can undo both."""
    ref, value, act = BY_HAND[case]
    before = ws.refs.read(ref)
    hand = ws.resolve(value) if value and not value.startswith("ref: ") else value
    ws.refs.write(ref, hand)
    if ref == HEAD:
        (ws.dot / HEAD).write_text(f"{value}\n")
    act(ws)
    *_, own, last = ws.oplog.operations()
    assert own.changes == (Change(ref, before, hand),) and own.name == f"moved by hand: {own.changes[0].name}"
    assert last.changes[-1].before == hand
    assert told(ws) == []
    undo(ws)
    undo(ws)
    assert ws.refs.read(ref) == before and told(ws) == []
    tag(ws, "after")
    assert [each.name for each in ws.oplog.operations()][-1] == "tag after"


def test_nobody_is_told_to_take_away_what_a_lost_operation_may_have_made(ws: Workspace, ids: list[str]) -> None:
    without(ws, "tag base")
    found = next(each for each in told(ws) if each.startswith(f"{TAGS}base"))
    assert found == f"{TAGS}base: no operation that is still in the log made it"


def test_what_a_text_of_the_audit_log_says_of_operations_is_no_record(ws: Workspace, ids: list[str]) -> None:
    ws.oplog.note(f'export {ids[0]} to "line": "{"0" * 64}", "number": 7, "operation": "0a1b2c3d"')
    assert told(ws) == []
    undo(ws)
