"""What the logs, undo and fsck say is so, and says something: nothing is restored that was written, and no two ids are cut alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos_cli.core.redaction import redacted
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, NotFound, UsageError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.branch import branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.op import op_log
from llmos_cli.operations.ps import ps
from llmos_cli.operations.push import push
from llmos_cli.operations.redo import redo
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.ui import render
from tests.conftest import Llmos
from tests.core.conftest import Commit

OTHER_END = {each: "0" if each == "f" else "f" for each in "0123456789abcdef"}


def listed(ws: Workspace) -> str:
    return render(op_log(ws).view())


def test_a_file_that_was_edited_since_is_said_to_be(ws: Workspace) -> None:
    remotes.add(ws, "far", "/nowhere")
    settings = ws.root / "llmos.yaml"
    added = settings.read_text()
    settings.write_text(f"{added}# mine\n")
    with pytest.raises(Conflict, match=r"^llmos.yaml was changed since, and undo would lose that$") as error:
        undo(ws)
    assert "put it back as it was" in error.value.hint
    settings.write_text(added)
    undo(ws)
    settings.write_text("# mine\n" + settings.read_text())
    with pytest.raises(Conflict, match=r"^llmos.yaml was changed since, and redo would lose that$"):
        redo(ws)


def test_what_was_written_is_not_said_to_be_restored(ws: Workspace) -> None:
    remotes.add(ws, "far", "/nowhere")
    assert "llmos.yaml changed\n" in listed(ws) and "restored" not in listed(ws)
    undo(ws)
    assert listed(ws).splitlines()[0].endswith("undo remote add far  llmos.yaml restored")
    redo(ws)
    assert listed(ws).splitlines()[0].endswith("redo remote add far  llmos.yaml changed")


def test_ids_are_as_long_as_it_takes_to_tell_them_apart(ws: Workspace, commit: Commit) -> None:
    made = commit(a="1")
    near = made.id[:20] + OTHER_END[made.id[20]] + made.id[21:]
    ws.refs.write(f"{HEADS}main", near)
    told = [problem.what for problem in fsck(ws).problems]
    assert f"names {near[:21]}, which is missing" in told
    assert any(
        f"is at {near[:21]}, and the last" in each and each.endswith(f"left it at {made.id[:21]}") for each in told
    )
    assert apart(made.id, [made.id, "no"]) == made.id[:12]


def test_a_record_is_not_said_to_be_another_number_than_it_is(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    head = ws.dot / "audit.head"
    text = head.read_text()
    at = text.index('"hash": "') + 9
    head.write_text(text[:at] + OTHER_END[text[at]] + text[at + 1 :])
    assert [each.what for each in fsck(ws).problems] == ["record 1 is not the one that was written last, by audit.head"]
    head.write_text(text.replace('"number": 1', '"number": 0'))
    assert "record 1 was not written, by audit.head: number 0 was the last" in [each.what for each in fsck(ws).problems]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_at_least_one(ws: Workspace, llmos: Llmos, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.chdir(ws.root)
    assert llmos("op", "log", "-n", limit).code == 2


def test_what_is_not_in_force_is_said_to_be_what_it_is(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    tag(ws, "one")
    first = op_log(ws).operations[0].id
    undone = undo(ws).operation.id
    with pytest.raises(UsageError, match=rf"^operation {undone} \(undo tag one\) is an undo of {first}$") as error:
        undo(ws, undone)
    assert error.value.hint == "`llmos redo` does it again"
    with pytest.raises(UsageError, match=rf"^operation {first} \(tag one\) was undone already$"):
        undo(ws, first)
    redone = redo(ws).operation.id
    with pytest.raises(UsageError, match=rf"^operation {redone} \(redo tag one\) is a redo of {first}$") as error:
        undo(ws, redone)
    assert error.value.hint == f"`llmos undo {first}` takes back what it did"
    undo(ws, first)
    tag(ws, "two")
    with pytest.raises(UsageError, match="was undone already") as error:
        undo(ws, first)
    assert "other operations came after it" in error.value.hint
    with pytest.raises(NotFound, match=r"^nothing names no operation to undo$"):
        undo(ws, "nothing")
    assert ws.refs.read(f"{TAGS}two")


def test_a_detached_head_that_a_tag_names_is_pushed_by_that(ws: Workspace, commit: Commit) -> None:
    first = commit(a="1")
    tag(ws, "base")
    commit(a="2")
    checkout(ws, "base")
    remotes.add(ws, "origin", str(ws.root / "far"))
    with pytest.raises(UsageError, match=rf"^HEAD \({first.id[:12]}\) is neither .*, but base is at it$") as error:
        push(ws, ["HEAD"])
    assert error.value.hint == "`llmos push base`"


def test_ps_folds_no_id_on_a_narrow_terminal(ws: Workspace, commit: Commit) -> None:
    made = commit(a="1")
    told = render(ps(ws, all=True).view(), colour=True, width=80)
    assert ws.runs.list()[0].id in told and made.id[:12] in told


def test_a_file_in_a_checkpoint_that_is_not_its_own_is_moved_out(ws: Workspace, commit: Commit, llmos) -> None:
    """And not removed: where it is now is said, two are never one, and what was in a folder of its own leaves none behind."""
    folder, before = (made := commit(a="1")).path, sorted(ws.checkpoints.rglob("*"))
    for name in ("mine", "notes/mine", "notes/deep/two\nlines"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "link").symlink_to("a")
    assert all(".llmos/strays" in each.what for each in fsck(ws).problems)
    moved = {each.where.split("/", 2)[2]: ws.root / each.moved for each in fsck(ws, repair=True).repaired}
    assert str(moved.pop("link").readlink()) == "a"
    assert {name: path.read_text() for name, path in moved.items()} == {name: name for name in moved}
    assert len(moved) == 3
    assert sorted(ws.checkpoints.rglob("*")) == before and fsck(ws).problems == ()
    (folder / "MINE").write_text("another")
    told = llmos("-C", ws.root, "fsck", "--repair")
    assert told.code == 0 and f"moved checkpoints/{made.id[:12]}/MINE to .llmos/strays/{made.id}/MINE.2" in told.out
    remotes.add(ws, "origin", str(ws.root.parent / "far"))
    assert backup(ws).backup


@pytest.mark.parametrize("name", ["secret", "my-password", "token"])
def test_a_tag_and_a_branch_that_are_called_so_hide_nothing(
    name: str, ws: Workspace, commit: Commit, tmp_path: Path
) -> None:
    """What is said of them is no secret."""
    remotes.add(ws, "origin", str(tmp_path / "far"))
    for number in range(2):
        commit(a=str(number))
        tag(ws, name, force=True)
        branch(ws, f"{name}{number}")
        shown = [render(push(ws, everything=True, force=True).view()), render(op_log(ws).view())]
        assert [redacted(each) for each in shown] == shown
    assert f"tag {name} from " in shown[0] and f"branch {name}1 is new, at " in shown[0]
