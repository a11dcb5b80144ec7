"""Remotes of this machine: killed at every step, resumed, shared by two, and full of what nobody should believe."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.manifest import FileEntry, Made, manifest, parse
from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEADS, Head
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import Content
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Conflict, Corrupt, LlmosError, NotFound, UsageError
from llmos_cli.events import Event, Note, Progress
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.branch import branch
from llmos_cli.operations.cargo import MovedRef
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fetch import fetch
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.pull import pull
from llmos_cli.operations.push import delete, push
from llmos_cli.operations.rm import rm
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from llmos_cli.transports.local import LocalStore
from tests.conftest import Llmos
from tests.core import killing
from tests.core.conftest import Commit, commit_to

STEPS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "truncate")
"""The calls by which a push or a fetch changes a disk; files grow between them."""


@pytest.fixture
def far(tmp_path: Path, ws: Workspace) -> Path:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    return tmp_path / "far"


def opened(ws: Workspace) -> Remote:
    return remotes.opened(ws, remotes.named(ws, "origin"))


def cloned(far: Path, name: str = "copy") -> Workspace:
    clone(str(far), far.parent / name)
    return Workspace.find(far.parent / name)


def whole(ws: Workspace) -> dict[str, str]:
    """The remote as others will find it, each checkpoint that a ref names with all its ancestors and bytes; ref -> id."""
    there = opened(ws)
    refs = {ref: str(each.value) for ref, each in there.refs().items()}
    waiting = list(refs.values())
    while waiting:
        found = there.manifest(waiting.pop())
        waiting += found.made.parents
        if there.has_weights(found.id):
            for entry in found.tree.values():
                data = b"".join(there.store.chunks(layout.object_name(entry.sha256), 0))
                assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry.sha256, entry.size)
    return refs


def killed_before(step: int, act: Callable[[], object]) -> bool:
    """`act` in a child that dies before its `step`-th call of STEPS; whether it got to the end instead."""
    return killing.killed_before(step, act, STEPS)


# There and back


def test_there_and_back(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1", b="same")
    tag(ws, "base")
    second = commit(a="2", b="same")
    sent = push(ws)
    assert (sent.checkpoints, sent.files, sent.runs) == (2, 3 + 2 * 2 + 1, 2)
    assert [ref.ref for ref in sent.refs] == ["heads/main", "tags/base"]
    again = push(ws)
    assert (again.checkpoints, again.files, again.runs, again.refs) == (0, 0, 0, ())
    other = cloned(far)
    assert other.head().branch == "main"
    assert other.resolve() == other.resolve("origin/main") == second.id
    assert other.resolve("base") == other.resolve("HEAD~1") == first.id
    assert (other.checkpoint().path / "a").read_text() == "2"
    assert fsck(other).problems == ()
    assert {record.id for record in other.runs.list()} == {record.id for record in ws.runs.list()}
    assert other.resolve(other.runs.list()[0].id) == first.id


def test_a_run_comes_with_what_it_made(ws: Workspace, commit: Commit, far: Path) -> None:
    """Not before: the run that made the second looked at the first, and its ref would be missing where it came with that."""
    commit(a="1")
    tag(ws, "base")
    second = commit(a="2")
    assert push(ws, ["base"]).runs == 1
    other = cloned(far, name="early")
    assert push(ws).runs == 1
    fetch(other)
    assert other.resolve(ws.runs.list()[-1].id) == second.id
    assert fsck(other).problems == ()


def test_one_changed_file_is_all_that_is_sent(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1" * 1000, b="2" * 1000, c="3" * 1000)
    push(ws)
    commit(a="1" * 1000, b="2" * 1000, c="4" * 1000)
    other = cloned(far)
    objects = {path for path in (far / "objects").rglob("*") if path.is_file()}
    sent = push(ws)
    run = ws.runs.list()[-1]
    size = 1000 + sum((run.path / name).stat().st_size for name in ("events.jsonl", "log.txt"))
    assert (sent.checkpoints, sent.bytes) == (1, size)
    assert (
        sum(path.stat().st_size for path in (far / "objects").rglob("*") if path.is_file() and path not in objects)
        == size
    )
    assert fetch(other).bytes == size + (run.path / "config.yaml").stat().st_size


@pytest.mark.parametrize("verb", ["push", "fetch"])
def test_files_travel_at_the_same_time(
    ws: Workspace, commit: Commit, far: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Two of the first transfers wait for one another: one after the other they would wait for ever."""
    commit(**{name: name * 100 for name in "abcdef"})
    if verb == "fetch":
        push(ws)
    met = threading.Barrier(2)
    one = LocalStore.put if verb == "push" else LocalStore.chunks

    def meeting(self: LocalStore, name: str, *rest: Any) -> Any:
        if name.startswith("objects/") and not met.broken and next(numbers) < 2:
            met.wait(timeout=20)
        return one(self, name, *rest)

    numbers = itertools.count()
    monkeypatch.setattr(LocalStore, "put" if verb == "push" else "chunks", meeting)
    push(ws) if verb == "push" else cloned(far)
    assert not met.broken and next(numbers) >= 2


def test_how_far_it_is_is_told_in_bytes(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1" * 3_000_000, b="2" * 2_000_000)
    told: list[Event] = []
    push(ws, emit=told.append)
    clone(str(far), far.parent / "copy", emit=told.append)
    last = {event.stage: event for event in told if isinstance(event, Progress)}
    assert {stage: (event.step, event.total, event.unit) for stage, event in last.items()} == {
        "push": (5, 5, "MB"), "fetch": (5, 5, "MB"),
    }  # fmt: skip
    assert all(event.rate and event.eta == 0 for event in last.values())


@pytest.mark.parametrize("late", ["fetched", "_configs", "_check_out"])
def test_a_clone_that_ends_a_disk_says_where_it_goes_on(
    ws: Workspace, commit: Commit, far: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    first = commit(a="1")
    push(ws)
    module = sys.modules[clone.__module__]
    work = getattr(module, late)

    def full(*args: Any, dry_run: bool = False, **kwargs: Any) -> Any:
        if dry_run:
            return work(*args, dry_run=True, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[Event] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, late, full)
        with pytest.raises(OSError, match="No space"):
            clone(str(far), far.parent / "copy", emit=told.append)
    assert any(isinstance(event, Note) and "the same `llmos clone` goes on there" in event.message for event in told)
    assert clone(str(far), far.parent / "copy").checkpoint == first.id


def test_what_undo_cannot_bring_back_comes_as_its_hint_says(
    ws: Workspace, commit: Commit, far: Path, llmos: Llmos, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, _ = commit(a="1"), commit(a="2"), commit(a="3")
    push(ws)
    rm(ws, [first.id], force=True)
    gc(ws, window="now")
    monkeypatch.chdir(ws.root)
    hint = llmos("undo").err.splitlines()[1]
    assert f"`llmos fetch --weights {first.id[:12]}`" in hint
    assert llmos(*hint.split("`")[1].split()[1:]).code == 0
    assert first.id not in ws.dropped and first.path.joinpath("a").read_text() == "1"


def test_a_clone_is_an_operation(ws: Workspace, commit: Commit, far: Path) -> None:
    """Of the branch and of HEAD, which can be taken back and done again."""
    first = commit(a="1")
    branch(ws, "try")
    push(ws, everything=True)
    clone(str(far), far.parent / "copy", branch="try")
    other = Workspace.find(far.parent / "copy")
    made = list(other.oplog.operations())[-1]
    assert made.name == f"clone {far}" and {change.what for change in made.changes} == {"HEAD", "refs/heads/try"}
    assert other.head() == Head("try", first.id) and fsck(other).problems == ()
    undo(other)
    assert other.head() == Head("main", None) and fsck(other).problems == ()
    other.oplog.redo()
    assert other.head() == Head("try", first.id) and fsck(other).problems == ()


def test_a_workspace_that_was_cloned_before_that_was_an_operation(ws: Workspace, commit: Commit, far: Path) -> None:
    """HEAD and its branch were written as they are here, and it was recorded: nothing is damaged, and what else is made is found."""
    first = commit(a="1")
    push(ws)
    other = Workspace.create(far.parent / "copy")
    remotes.add(other, "origin", str(far))
    fetch(other)
    other.refs.write("refs/heads/old", first.id)
    other.refs.write("HEAD", "ref: refs/heads/old")
    assert [each.where for each in fsck(other).problems] == ["refs/heads/old", "HEAD"], (
        "nothing says that it was cloned"
    )
    other.oplog.note(f"clone {far}")
    assert fsck(other).problems == ()
    branch(other, "new")
    checkout(other, "new")
    assert fsck(other).problems == ()
    other.refs.write("refs/heads/evil", first.id)
    assert [each.where for each in fsck(other).problems] == ["refs/heads/evil"]


def test_two_fetches_at_once_of_two_remotes(ws: Workspace, commit: Commit, far: Path) -> None:
    """The first to be done does not take from the second what came for it."""
    mine = commit(a="mine")
    push(ws)
    second = Workspace.create(far.parent / "second")
    remotes.add(second, "origin", str(far.parent / "far-second"))
    theirs = commit_to(second, {"a": "theirs"})
    push(second)
    there = Workspace.create(far.parent / "there")
    remotes.add(there, "one", str(far)), remotes.add(there, "two", str(far.parent / "far-second"))
    with ThreadPoolExecutor(2) as pool:
        with there.oplog.locked():  # both of them get as far as they can
            fetches = [pool.submit(fetch, Workspace.find(there.root), remote) for remote in ("one", "two")]
            arrived = there.dot / "tmp" / "fetch"
            started = time.monotonic()
            while not arrived.exists() or any(path.suffix for path in arrived.iterdir()):
                assert time.monotonic() - started < 30
                time.sleep(0.01)
            time.sleep(0.2)
        assert [each.result().checkpoints for each in fetches] == [1, 1]
    assert {entry.id for entry in Workspace.find(there.root).index.entries()} == {mine.id, theirs.id}
    assert len(list((there.root / "runs").iterdir())) == 2 and fsck(there).problems == ()


def test_two_who_share_a_remote(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    push(ws)
    other = cloned(far)
    theirs = commit_to(other, {"a": "theirs"})
    push(other)
    ours = commit(a="ours")
    with pytest.raises(
        Conflict, match=f"main is at {theirs.id[:12]} on origin, which is not here yet; here it is at {ours.id[:12]}"
    ):
        push(ws)
    with pytest.raises(Conflict, match="neither comes from the other") as conflict:
        pull(ws)
    assert "llmos branch -f main origin/main" in conflict.value.hint
    assert (ws.resolve(), ws.resolve("origin/main")) == (ours.id, theirs.id)
    push(ws, force=True)
    assert whole(ws) == {"refs/heads/main": ours.id}
    with pytest.raises(Conflict):
        pull(other)


def test_pull_follows_and_can_be_undone(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1")
    push(ws)
    other = cloned(far)
    second = commit(a="2")
    push(ws)
    planned = pull(other, dry_run=True)
    assert (planned.before, planned.checkpoint) == (first.id, second.id)
    assert other.resolve() == first.id
    pulled = pull(other)
    assert (pulled.before, pulled.checkpoint, other.resolve()) == (first.id, second.id, second.id)
    other.oplog.undo()
    assert other.resolve() == first.id
    commit_to(other, {"a": "3"})
    assert pull(ws).checkpoint == second.id


def test_the_same_ref_moved_by_two_at_once_is_a_conflict(ws: Workspace, commit: Commit, far: Path) -> None:
    first, second = commit(a="1"), commit(a="2")
    push(ws)
    there = opened(ws)
    seen = there.refs()[HEADS + "main"]
    assert there.move(seen, first.id)
    assert not opened(ws).move(seen, second.id)
    assert there.refs()[HEADS + "main"].value == first.id


def test_lineage_travels_where_weights_were_removed(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1")
    commit(a="2")
    rm(ws, [first.id[:12]])
    sent = push(ws)
    assert (sent.checkpoints, sent.lineage) == (1, 1)
    other = cloned(far)
    assert other.resolve("HEAD~1") == first.id
    assert first.id in other.dropped
    assert fsck(other).problems == ()
    with pytest.raises(NotFound, match=r"weights of .* were removed"):
        other.checkpoint("HEAD~1")


def test_removed_weights_come_back_when_they_are_asked_for(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1", b="same")
    second = commit(a="2", b="same")
    push(ws)
    rm(ws, [first.id])
    assert fetch(ws).checkpoints == 0
    assert fetch(ws, weights=["HEAD~1"], dry_run=True).checkpoints == 1
    assert first.id in ws.dropped
    gc(ws, window="now")  # until then they are still here
    fetched = fetch(ws, weights=["HEAD~1", "HEAD"])
    assert (fetched.checkpoints, fetched.files) == (1, 1)
    assert (ws.checkpoint("HEAD~1").path / "a").read_text() == "1"
    assert fsck(ws).problems == ()
    rm(ws, [first.id, second.id], force=True)
    remotes.add(ws, "second", str(far.parent / "far2"))
    push(ws, remote="second")
    with pytest.raises(NotFound, match="second does not have the weights of"):
        fetch(ws, "second", weights=["HEAD"])


def test_what_a_remote_was_seen_to_have_is_kept_by_gc(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    push(ws)
    other = cloned(far)
    theirs = commit_to(other, {"a": "2"})
    push(other)
    fetch(ws)
    gc(ws, expire="now", window="now")
    assert ws.checkpoint("origin/main").id == theirs.id
    remotes.remove(ws, "origin")
    gc(ws, expire="now", window="now")
    assert not (ws.checkpoints / theirs.id).exists()


def test_a_tag_that_is_another_there_stays_what_it_is(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1")
    tag(ws, "base")
    push(ws)
    other = cloned(far)
    second = commit_to(other, {"a": "2"})
    tag(other, "base", force=True)
    said: list[Any] = []
    push(other, emit=said.append)
    assert "tag base is at" in next(each.message for each in said if each.to_json()["event"] == "note")
    with pytest.raises(Conflict, match="tag base is at"):
        push(other, ["base"])
    push(other, ["base"], force=True)
    fetch(ws)
    assert (ws.resolve("base"), ws.resolve("origin/base")) == (first.id, second.id)


def test_only_what_has_a_name_is_pushed(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    commit(a="2")
    with pytest.raises(UsageError, match="neither a branch nor a tag") as error:
        push(ws, ["HEAD~1"])
    assert error.value.hint == "`llmos tag NAME HEAD~1` gives it a name"
    assert not far.exists()


def test_a_branch_that_is_deleted_there_and_made_again(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1")
    push(ws)
    other = cloned(far)
    gone = delete(ws, ["main"])
    assert gone.refs == {"heads/main": first.id}
    assert ws.resolve("main") == first.id
    with pytest.raises(NotFound, match="no checkpoint is called 'origin/main'"):
        ws.resolve("origin/main")
    with pytest.raises(NotFound, match="origin has no branch and no tag main"):
        delete(ws, ["main"])
    assert other.resolve("origin/main") == first.id
    assert delete(other, ["main"]).refs == {"heads/main": first.id}, "where it was seen last"
    with pytest.raises(NotFound, match="no checkpoint is called 'origin/main'"):
        other.resolve("origin/main")
    with pytest.raises(NotFound, match="origin has no branch and no tag main"):
        delete(other, ["main"])
    assert fetch(other).lines() == ["nothing new on origin"]
    with pytest.raises(NotFound, match="origin has no branch main"):
        pull(other)
    assert push(ws).checkpoints == 0
    assert whole(ws) == {"refs/heads/main": first.id}


def test_a_branch_that_somebody_else_moved_on_is_not_deleted_unseen(ws: Workspace, commit: Commit, far: Path) -> None:
    first = commit(a="1")
    branch(ws, "try"), push(ws, ["main", "try"])
    other = cloned(far)
    branch(other, "try", "origin/try"), checkout(other, "try")
    second = commit_to(other, {"a": "2"})
    push(other, ["try"])
    with pytest.raises(Conflict, match=f"at {second.id[:12]} on origin, and was at {first.id[:12]} when it was last"):
        delete(ws, ["try"])
    stranger = Workspace.create(far.parent / "stranger")
    remotes.add(stranger, "origin", str(far))
    with pytest.raises(Conflict, match="and was never heard of here: it was not deleted"):
        delete(stranger, ["try"])
    fetch(ws)
    assert delete(ws, ["try"]).refs == {"heads/try": second.id}
    gone = MovedRef("heads/origin/try", second.id, "")
    assert fetch(other, dry_run=True).refs == fetch(other).refs == (gone,) and fetch(other).refs == ()
    assert "is there no more" in str(gone.told)
    push(other, ["try"])
    assert delete(stranger, ["try"], force=True).refs == {"heads/try": second.id}


# Settings


def test_settings_are_edited_in_place_and_undone(ws: Workspace, tmp_path: Path) -> None:
    path = ws.root / "llmos.yaml"
    text = "format: 1   # ours\ndefaults:\n  seed: 1\nremotes:\n  a: {url: /x}   # the first\n# the end\n"
    path.write_text(text)
    remotes.add(ws, "b", str(tmp_path / "far"))
    assert [each.name for each in remotes.remotes(ws).remotes] == ["a", "b"]
    assert path.read_text().startswith(text.removesuffix("# the end\n"))
    remotes.remove(ws, "b")
    assert path.read_text() == text
    remotes.remove(ws, "a")
    assert path.read_text() == "format: 1   # ours\ndefaults:\n  seed: 1\n# the end\n"
    ws.oplog.undo()
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [
        ("../x", "/tmp/far", "is not a name for a remote"),
        ("x", "sftp://me:secret@host/models", "a password in a URL"),
        ("x", "/no/such/place/far", "there is no folder /no/such/place"),
        ("x", "", "is no folder and no URL"),
    ],
)
def test_what_cannot_be_a_remote(ws: Workspace, name: str, url: str, said: str) -> None:
    before = (ws.root / "llmos.yaml").read_text()
    with pytest.raises(LlmosError, match=said):
        remotes.add(ws, name, url)
    assert (ws.root / "llmos.yaml").read_text() == before


@pytest.mark.parametrize("folder", [".", "checkpoints", "checkpoints/far", ".llmos/objects", "runs/x", "configs"])
def test_the_workspace_itself_is_no_remote(
    ws: Workspace, llmos: Llmos, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.chdir(ws.root)
    ran = llmos("remote", "add", "origin", folder)
    assert (ran.code, f"{folder} is where this workspace keeps its own files" in ran.err) == (2, True)
    assert remotes.settings(ws) == {}
    assert llmos("remote", "add", "origin", "far").code == 0  # a folder of its own, wherever


def test_what_no_push_could_be_sent_to_is_not_added(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other things already \(thesis.tex\)"):
        remotes.add(ws, "thesis", str(tmp_path / "mine"))
    with pytest.raises(UsageError, match="is a workspace"):
        remotes.add(ws, "theirs", str(Workspace.create(tmp_path / "theirs").root))
    assert remotes.settings(ws) == {}


def test_what_is_damaged_is_added_to_be_mended(ws: Workspace, commit: Commit, far: Path) -> None:
    """`fsck --remote NAME --repair` writes the missing file again, from another workspace too."""
    commit(a="1")
    push(ws)
    (far / "llmos.json").unlink()
    other, notes = Workspace.create(far.parent / "other"), []
    remotes.add(other, "origin", str(far), emit=lambda event: notes.append(getattr(event, "message", "")))
    assert [note for note in notes if "llmos.json is missing" in note]
    assert list(remotes.settings(other)) == ["origin"]


def test_a_folder_of_other_things_is_no_remote(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    far.mkdir()
    (far / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other things already \(thesis.tex\)"):
        push(ws)
    assert [path.name for path in far.iterdir()] == ["thesis.tex"]


# Killed

every = pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
"""Each step is the last one in `make test-all`, every fifth in `make test`."""


@every
def test_a_push_killed_before_each_of_its_steps(ws: Workspace, commit: Commit, far: Path, stride: int) -> None:
    first = commit(a="1", b="same")
    push(ws)
    shutil.copytree(far, kept := far.with_name("kept"))
    second = commit(a="2", b="same")
    tag(ws, "base")
    step = 0
    while not killed_before(step, lambda: push(Workspace(ws.root))):
        assert whole(ws)["refs/heads/main"] in (first.id, second.id), step
        push(Workspace(ws.root))
        assert whole(ws) == {"refs/heads/main": second.id, "refs/tags/base": second.id}, step
        assert [path for path in (far / "uploads").iterdir() if path.name.startswith("objects")] == []
        shutil.rmtree(far)
        shutil.copytree(kept, far)
        step += stride
    assert step > 30


@every
def test_a_fetch_killed_before_each_of_its_steps(ws: Workspace, commit: Commit, far: Path, stride: int) -> None:
    first = commit(a="1", b="same")
    push(ws)
    other = cloned(far)
    shutil.copytree(other.root, kept := far.with_name("kept"))
    second = commit(a="2", b="same")
    tag(ws, "base")
    push(ws)
    step = 0
    while not killed_before(step, lambda: pull(Workspace(other.root))):
        after = Workspace.find(other.root)
        assert fsck(after).problems == (), step
        assert after.resolve() in (first.id, second.id)
        assert pull(after).checkpoint == after.resolve("base") == second.id
        assert fsck(after).problems == ()
        assert len(after.runs.list()) == 2
        shutil.rmtree(other.root)
        shutil.copytree(kept, other.root)
        step += stride
    assert step > 30


def test_objects_that_arrived_are_not_sent_again(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(**{name: name * 1000 for name in "abcdef"})
    killed_before(40, lambda: push(Workspace(ws.root)))
    arrived = {path.stat().st_ino for path in (far / "objects").rglob("*") if path.is_file()}
    assert arrived
    sent = push(ws)
    assert sent.files == 9 - len(arrived)
    assert arrived <= {path.stat().st_ino for path in (far / "objects").rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [b"", b"0123", b"01x3", b"0123456789ab", b"0123456789abcdef and more"])
def test_an_upload_goes_on_where_it_stopped(tmp_path: Path, there: bytes) -> None:
    store, data = LocalStore(tmp_path, "me"), b"0123456789abcdef"
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "objects-x.me").write_bytes(there)
    store.put("objects/x", Content(len(data), lambda: iter((data[:7], data[7:]))), lambda _: None)
    assert (tmp_path / "objects" / "x").read_bytes() == data
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("part", [b"22", b"x2", b"2" * 5000])
def test_a_download_goes_on_where_it_stopped(ws: Workspace, commit: Commit, far: Path, part: bytes) -> None:
    commit(a="1")
    push(ws)
    other = cloned(far)
    commit(a="2" * 3000)
    push(ws)
    folder = other.dot / "tmp" / "fetch"
    folder.mkdir()
    (folder / (hashlib.sha256(b"2" * 3000).hexdigest() + ".part")).write_bytes(part)
    assert (other.checkpoint(pull(other).checkpoint).path / "a").read_text() == "2" * 3000
    assert not folder.exists()


def test_a_copy_of_a_workspace_does_not_write_into_its_uploads(ws: Workspace, far: Path) -> None:
    own = remotes._identity(ws)
    shutil.copytree(ws.root, far.parent / "twin")
    twin = Workspace(far.parent / "twin")
    ws.root.rename(far.parent / "moved")
    assert remotes._identity(Workspace(far.parent / "moved")) == own != remotes._identity(twin)


def test_local_bytes_that_were_damaged_are_not_sent(ws: Workspace, commit: Commit, far: Path) -> None:
    file = commit(a="1").path / "a"
    file.chmod(0o644)
    file.write_text("2")
    with pytest.raises(Corrupt, match=r"a in .* is not what was saved, and was not sent"):
        push(ws)
    assert whole(ws) == {}
    assert not any(
        path.name.startswith("objects") and path.read_bytes() == b"2" for path in (far / "uploads").iterdir()
    )


# What nobody should believe

Spoil = Callable[[Path, str], None]
"""Does something to a remote; told the id of its checkpoint."""


def with_manifest(change: Callable[[dict[str, FileEntry]], dict[str, FileEntry]]) -> Spoil:
    """A manifest with other files and the right hash, and the branch on it: as whoever can write there would do it."""

    def spoil(far: Path, checkpoint: str) -> None:
        found = parse((far / layout.checkpoint_name(checkpoint)).read_bytes())
        made = Made("train", (), {}, {}, {}, 0, "2026-01-01T00:00:00Z")
        forged = manifest(change(dict(found.tree)), made)
        (far / layout.checkpoint_name(forged.id)).write_text(forged.text())
        ref = json.dumps({"ref": "refs/heads/main", "value": forged.id})
        (far / layout.ref_name("refs/heads/main", 2)).write_text(ref)

    return spoil


def renamed(name: str) -> Spoil:
    return with_manifest(lambda tree: {**tree, name: tree["a"]})


def object_of(far: Path) -> Path:
    return far / layout.object_name(hashlib.sha256(b"content").hexdigest())


def altered(far: Path, checkpoint: str) -> None:
    path = far / layout.checkpoint_name(checkpoint)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


def replaced(make: Callable[[Path], object]) -> Spoil:
    def spoil(far: Path, checkpoint: str) -> None:
        object_of(far).unlink()
        make(object_of(far))

    return spoil


def ref(text: str, name: str = "refs/heads/main", number: int = 2) -> Spoil:
    def spoil(far: Path, checkpoint: str) -> None:
        path = far / layout.ref_name(name, number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return spoil


def run(change: Callable[[dict[str, Any], Path], None]) -> Spoil:
    def spoil(far: Path, checkpoint: str) -> None:
        (path,) = (far / "runs").iterdir()
        value = json.loads(path.read_text())
        change(value, far)
        path.write_text(json.dumps(value))

    return spoil


def events(*lines: object) -> Spoil:
    """The run's events replaced by these lines."""

    def change(value: dict[str, Any], far: Path) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        sha256 = hashlib.sha256(text).hexdigest()
        value["tree"]["events.jsonl"] = {"sha256": sha256, "size": len(text)}
        path = far / layout.object_name(sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)

    return run(change)


ENDED = {"event": "ended", "at": 1.0, "status": "done"}
SPOILED: dict[str, Spoil] = {
    "a name that leads out": renamed("../escaped"),
    "a name that leads out deep inside": renamed("a/../../../escaped"),
    "an absolute name": renamed("/tmp/escaped"),
    "a name with NUL": renamed("a\0b"),
    "a name with a newline": renamed("a\nb"),
    "a Windows path": renamed("..\\escaped"),
    "an empty part": renamed("x//y"),
    "two names that some disks take for one": renamed("A"),
    "two names that differ by Unicode's forms": with_manifest(lambda tree: {"\u00e9": tree["a"], "e\u0301": tree["a"]}),
    "a file that is a folder too": renamed("a/b"),
    "our own manifest among the files": renamed("Manifest.json"),
    "an absurd size": with_manifest(lambda tree: {"a": FileEntry(tree["a"].sha256, 1 << 52)}),
    "a negative size": with_manifest(lambda tree: {"a": FileEntry(tree["a"].sha256, -1)}),
    "more bytes than the disk has": with_manifest(lambda tree: {"a": FileEntry("0" * 64, 1 << 49)}),
    "a hash that is a path": with_manifest(lambda tree: {"a": FileEntry("../../etc/passwd", 7)}),
    "a manifest that was altered": altered,
    "a manifest that is a bomb": lambda far, checkpoint: (far / layout.checkpoint_name(checkpoint)).write_text("[" * 100_000) and None,
    "other bytes of the same length": replaced(lambda path: path.write_bytes(b"CONTENT")),
    "bytes that are cut off": replaced(lambda path: path.write_bytes(b"con")),
    "bytes that are gone": replaced(lambda path: None),
    "a link in place of bytes": replaced(lambda path: path.symlink_to("/etc/passwd")),
    "a pipe in place of bytes": replaced(os.mkfifo),
    "a ref that is garbage": ref("garbage"),
    "a ref that leads out": ref(json.dumps({"ref": "refs/heads/../../HEAD", "value": "0" * 64}), "refs/heads/../../HEAD", 1),
    "a ref to what is no id": ref(json.dumps({"ref": "refs/heads/main", "value": "../../x"})),
    "a ref to what is not there": ref(json.dumps({"ref": "refs/heads/main", "value": "0" * 64})),
    "a ref under another's name": ref(json.dumps({"ref": "refs/heads/other", "value": "0" * 64})),
    "a ref that is endless": ref("x" * 100_000),
    "a ref that nobody counted to": ref(layout.text({"ref": "refs/heads/main", "value": "0" * 64}).decode(), number=99_999_999),
    "a run that leads out": run(lambda value, far: value.update(run="../../escaped")),
    "a run with a file that leads out": run(lambda value, far: value["tree"].update({"../x": value["tree"]["log.txt"]})),
    "a run with a state": run(lambda value, far: value["tree"].update({"state/training.pt": value["tree"]["log.txt"]})),
    "a run that never ended": events({"event": "saved", "at": 1.0, "checkpoint": "x"}),
    "a run whose events are no events": events(["ended"], ENDED),
    "a run with a metric that has no name": events({"event": "metric", "at": 1.0, "checkpoint": "x", "value": 1}, ENDED),
    "a run with a time that is none": events({**ENDED, "at": "now"}),
    "a run whose number no index holds": events({"event": "saved", "at": 1.0, "checkpoint": "x", "stored": 2**70}, ENDED),
    "a format of the future": lambda far, checkpoint: (far / "llmos.json").write_text('{"llmos": "remote", "format": 99}') and None,
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_nobody_should_believe_is_refused(ws: Workspace, commit: Commit, far: Path, spoil: Spoil) -> None:
    checkpoint = commit(a="content")
    push(ws)
    spoil(far, checkpoint.id)
    other = Workspace.create(far.parent / "other")
    remotes.add(other, "origin", str(far))
    before = visible(other)
    with pytest.raises(LlmosError) as error:
        fetch(other)
    assert error.value.exit_code in (1, 5), error.value.message
    assert visible(other) == before
    assert not list(far.parent.rglob("escaped*"))
    assert Workspace(other.root).runs.list() == []


def visible(ws: Workspace) -> dict[str, bytes | None]:
    """What there is but for scratch, locks and caches."""
    paths = [path for path in ws.root.rglob("*") if not {"tmp", "locks"} & set(path.parts) and "index" not in path.name]
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in paths
        if path.name not in ("tmp", "identity")
    }


@given(
    st.lists(
        st.text(st.sampled_from("aAb/.\\é\u0301~\0\n"), min_size=1, max_size=6), min_size=1, max_size=4, unique=True
    )
)
def test_names_that_pass_are_files_of_their_own_inside(names: list[str]) -> None:
    try:
        hostile.check_tree({name: FileEntry("0" * 64, 1) for name in names}, "a manifest")
    except Corrupt:
        return
    root = Path("/root/of/it")
    for name in names:
        path = Path(os.path.normpath(root / name))
        assert path.is_relative_to(root) and path != root and str(path.relative_to(root)) == name
    assert len({name.casefold() for name in names}) == len(names)
    assert not any(other.casefold().startswith(name.casefold() + "/") for name in names for other in names)


def test_a_link_in_a_remote_does_not_lead_a_push_out_of_it(ws: Workspace, commit: Commit, far: Path) -> None:
    commit(a="1")
    push(ws)
    (outside := far.parent / "outside").mkdir()
    shutil.rmtree(far / "checkpoints")
    (far / "checkpoints").symlink_to(outside)
    commit(a="2")
    with pytest.raises(Corrupt, match="leads out of it"):
        push(ws)
    assert list(outside.iterdir()) == []


def test_escaped_names_of_refs_are_told_apart_on_every_disk() -> None:
    names = [layout.escaped(name) for name in ("heads/main", "heads/Main", "heads/a/b", "heads/a%2fb", "heads/é")]
    assert len({name.casefold() for name in names}) == len(names)
    assert not any("/" in name for name in names)


def test_a_move_that_undo_cannot_reach(ws: Workspace, commit: Commit, far: Path) -> None:
    """What a remote was seen to have is no operation: undoing a push would not undo what is there."""
    commit(a="1")
    before = list(ws.oplog.operations())
    push(ws)
    assert list(ws.oplog.operations()) == before
    ws.oplog.apply("x", [Change(HEADS + "x", None, ws.resolve())])
    assert ws.resolve("origin/main") == ws.resolve()


# Places that only fsspec knows


def test_a_place_that_cannot_tell_two_apart_takes_objects_and_moves_a_ref_by_force(
    ws: Workspace, commit: Commit, tmp_path: Path
) -> None:
    remotes.add(ws, "origin", "memory://models/demo")
    checkpoint = commit(a="1")
    with pytest.raises(
        LlmosError, match=r"everything was sent to origin but heads/main was not moved: memory has no way"
    ):
        push(ws)
    sent = push(ws, force=True)
    assert (sent.checkpoints, [ref.ref for ref in sent.refs]) == (0, ["heads/main"])
    clone("memory://models/demo", tmp_path / "copy")
    assert Workspace.find(tmp_path / "copy").checkpoint().id == checkpoint.id
    assert push(ws).refs == ()


@pytest.mark.parametrize(
    ("url", "said"), [("nosuch://x/y", "is no URL that fsspec knows"), ("gs://bucket/x", "needs another package")]
)
def test_a_place_that_fsspec_cannot_open(ws: Workspace, url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        remotes.add(ws, "origin", url)
