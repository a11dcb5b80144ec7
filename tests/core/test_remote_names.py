"""Names that travel: one that went is in nobody's way, and what another disk could not have is not sent."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.manifest import Made
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.events import Event, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.branch import branch, delete_branch, rename_branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.push import delete, push
from llmos_cli.operations.restore import restore
from llmos_cli.operations.tag import delete_tag, tag
from llmos_cli.operations.undo import undo
from tests.core.conftest import Commit, commit_to

MAKE = {"branch": (branch, delete_branch), "tag": (tag, delete_tag)}


@pytest.fixture(params=["plain", "encrypted"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The file with the remote's key; empty where it has none."""
    return str(tmp_path / "key") if request.param == "encrypted" else ""


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("old", "new"), [("try", "try/one"), ("try/one", "Try"), ("try/one", "try"), ("RC1", "rc1")])
def test_a_name_that_was_deleted_there_is_in_nobodys_way(
    ws: Workspace, commit: Commit, tmp_path: Path, key: str, kind: str, old: str, new: str
) -> None:
    """Neither for whoever comes new, nor for who saw the old one."""
    checkpoint, (make, unmake) = commit(a="1"), MAKE[kind]
    remotes.add(ws, "origin", str(tmp_path / "far"), key_file=key)
    make(ws, old)
    push(ws, everything=True)
    clone(str(tmp_path / "far"), tmp_path / "saw", key_file=key)
    delete(ws, [old])
    unmake(ws, old)
    make(ws, new)
    push(ws, everything=True)
    fetch(saw := Workspace.find(tmp_path / "saw"))
    clone(str(tmp_path / "far"), tmp_path / "new", key_file=key)
    for each in (ws, saw, Workspace.find(tmp_path / "new")):
        seen = each.refs.under("refs/remotes/origin/")
        assert seen == {"heads/main": checkpoint.id, f"{'heads' if kind == 'branch' else 'tags'}/{new}": checkpoint.id}


@pytest.mark.parametrize("make", [branch, tag, lambda ws, name: checkout(ws, create=name)])
def test_names_that_some_disk_takes_for_one_are_refused_when_they_are_made(
    ws: Workspace, commit: Commit, make: Callable[[Workspace, str], object]
) -> None:
    commit(a="1")
    make(ws, "Grün/v1")
    for name in ("grün/V1", "gru\u0308n/v1", "GRÜN", "grün/v1/x"):
        with pytest.raises(UsageError, match=f"Grün/v1 stands in the way of {name}") as error:
            make(ws, name)
        assert "choose a name" in error.value.hint
    make(ws, "Grün/v2")


def test_a_branch_may_be_called_what_only_its_old_name_was_like(ws: Workspace, commit: Commit) -> None:
    first = commit(a="1")
    for old, new in (("main", "Main"), ("Main", "MAIN/one")):
        rename_branch(ws, old, new)
        assert ws.refs.under(HEADS) == {new: first.id} and ws.head().branch == new
    undo(ws), undo(ws)
    assert ws.refs.under(HEADS) == {"main": first.id}


def test_what_could_not_come_back_is_not_sent_and_the_way_out_that_is_told_works(
    ws: Workspace, commit: Commit, tmp_path: Path
) -> None:
    """Names that an older llmos let be, or somebody else's tag."""
    commit(a="1")
    remotes.add(ws, "origin", str(far := tmp_path / "far"))
    tag(ws, "V1")
    ws.refs.write(TAGS + "v1", ws.resolve())
    said = r"has '(\.llmos/)?refs/tags/V1' and '(\.llmos/)?refs/tags/v1', which some disks take for one"
    for send in (push, backup):
        with pytest.raises(UsageError, match=said) as error:
            send(ws)
        assert "`llmos tag -d OLD`" in error.value.hint and not far.exists()
    tag(ws, "v1.0", "v1"), delete_tag(ws, "v1")
    push(ws), backup(ws)
    clone(str(far), tmp_path / "copy"), restore(str(far), tmp_path / "back")
    other = Workspace.find(tmp_path / "copy")
    delete_tag(other, "V1"), tag(other, "v1")
    commit_to(other, {"a": "2"})
    heard: list[Event] = []
    push(other, emit=heard.append)
    assert [each.message for each in heard if isinstance(each, Note)] == [
        "tag v1 stays here: tags/V1 on origin stands in its way"
    ]
    with pytest.raises(UsageError, match=r"nobody could fetch from origin then: it has 'refs/tags/V1' and"):
        push(other, ["v1"])
    heard.clear()
    fetch(other, emit=heard.append)
    assert "your tag v1 stands in its way (`llmos tag -d v1` makes room" in next(
        each.message for each in heard if isinstance(each, Note)
    )
    delete(other, ["V1"]), push(other, ["v1"]), delete_tag(ws, "V1")
    fetch(ws)
    assert set(ws.refs.under(TAGS)) == {"v1", "v1.0"}


def test_a_run_whose_events_nobody_would_believe_stays_here(ws: Workspace, commit: Commit, tmp_path: Path) -> None:
    """A line that a full disk cut off, before the run was resumed."""
    commit(a="1")
    (record,) = ws.runs.list()
    events = record.path / "events.jsonl"
    events.write_text('{"event": "prog' + events.read_text())
    remotes.add(ws, "origin", str(tmp_path / "far"))
    assert push(ws).runs == 0
    clone(str(tmp_path / "far"), tmp_path / "copy")


NAMES = st.lists(st.text(st.sampled_from("aAé\u0301ÉsSßK\u212a/.\\\t-"), min_size=1, max_size=4), max_size=4)


@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES, NAMES, NAMES)
def test_whatever_was_sent_comes_back(
    branches: list[str], tags: list[str], configs: list[str], beside: list[str]
) -> None:
    """Or it is not sent: nothing is there then, and what was there before is as good as it was."""
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        root = Path(folder)
        ws, far = Workspace.create(root / "w"), root / "far"
        remotes.add(ws, "origin", str(far))
        for name in [name for name in (*configs, *beside) if "/" not in name and name not in (".", "..")]:
            ((ws.configs if name in configs else ws.root) / name).write_text(name)
        made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
        with ws.begin("train", config={}, files=sorted(ws.configs.iterdir())) as run, ws.stage() as staged:
            (staged / "a").write_text("1")
            run.commit(staged, made)
        for make, called in ((branch, branches), (tag, tags)):
            for name in called:
                with contextlib.suppress(UsageError):
                    make(ws, name)
        push(ws, everything=True)
        clone(str(far), root / "copy")
        copy = Workspace.find(root / "copy")
        assert copy.refs.under(TAGS) == ws.refs.under(TAGS) and fsck(copy).problems == ()
        try:
            backup(ws)
        except UsageError:
            assert not (far / "backups").exists()
            return
        restore(str(far), root / "back")
        back = Workspace.find(root / "back")
        assert back.refs.under("refs/") == ws.refs.under("refs/") and fsck(back).problems == ()
        assert {path.name for path in back.root.iterdir()} == {path.name for path in ws.root.iterdir()}


def memory() -> Path | None:
    """A disk would take longer over its fsyncs than all else together."""
    return found if (found := Path("/dev/shm")).is_dir() else None
