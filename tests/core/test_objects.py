"""Equal files are stored once, whatever the file system can do, and damage is never spread."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import Objects, files_below, hash_file, hash_files, share
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.operations.du import du
from llmos_cli.operations.fsck import fsck

TREES = st.dictionaries(st.sampled_from(["a", "b", "sub/c", "sub/d"]), st.binary(max_size=64), min_size=1)


def stage(dot: Path, files: dict[str, bytes]) -> Path:
    staged = Path(tempfile.mkdtemp(dir=dot / "tmp"))
    for name, content in files.items():
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_bytes(content)
    return staged


def adopt(objects: Objects, staged: Path) -> int:
    tree = {
        str(path.relative_to(staged)): entry
        for path, entry in hash_files(staged / n for n in files_below(staged)).items()
    }
    return objects.adopt(staged, tree)


@settings(max_examples=30, deadline=None)
@given(st.lists(TREES, min_size=1, max_size=4))
def test_content_survives_and_each_is_new_once(trees: list[dict[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        dot = Workspace.create(Path(root) / "w").dot
        objects = Objects(dot)
        known: set[bytes] = set()
        for files in trees:
            staged = stage(dot, files)
            new = adopt(objects, staged)
            assert {name: (staged / name).read_bytes() for name in files_below(staged)} == files
            assert new == sum(len(content) for content in set(files.values()) - known)
            known |= set(files.values())
        assert all(hash_file(objects.path(name)).sha256 == name for name in objects.names())


def test_files_are_read_only_afterwards(ws: Workspace) -> None:
    staged = stage(ws.dot, {"a": b"x"})
    adopt(ws.objects, staged)
    assert (staged / "a").stat().st_mode & 0o777 == 0o444


def test_a_damaged_object_is_replaced_and_not_spread(ws: Workspace) -> None:
    adopt(ws.objects, stage(ws.dot, {"a": b"good"}))
    path = ws.objects.path(*ws.objects.names())
    path.chmod(0o644)
    path.write_bytes(b"baad")
    staged = stage(ws.dot, {"a": b"good"})
    adopt(ws.objects, staged)
    assert (staged / "a").read_bytes() == b"good"
    assert path.read_bytes() == b"good"


def test_where_nothing_can_be_shared_each_has_its_own_copy(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, commit: Any
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    first, second = commit(a="same", b="1"), commit(a="same", b="2")
    assert ws.storage == "copy"
    assert ws.objects.names() == set()
    assert (first.path / "a").read_text() == (second.path / "a").read_text() == "same"
    assert [(each.own, each.shared, each.stored) for each in du(ws).usage] == [(5, 0, 5), (5, 0, 5)]


def test_equal_files_share_their_bytes(ws: Workspace, commit: Any) -> None:
    first, second = commit(a="same", b="1"), commit(a="same", b="2")
    if ws.storage == "hardlink":
        assert (first.path / "a").samefile(second.path / "a")
    usage = {each.id: each for each in du(ws).usage}
    assert (usage[first.id].own, usage[first.id].shared, usage[first.id].stored) == (1, 4, 5)
    assert (usage[second.id].own, usage[second.id].shared, usage[second.id].stored) == (1, 4, 1)
    assert du(ws).checkpoints == 6


@pytest.mark.slow
def test_a_file_with_all_the_names_it_may_have_is_stored_anew(ws: Workspace, tmp_path: Path, commit: Any) -> None:
    most = os.pathconf(tmp_path, "PC_LINK_MAX")
    commit(a="same")
    stored = ws.objects.path(*ws.objects.names())
    try:
        for number in range(most):
            os.link(stored, tmp_path / str(number))
    except OSError as error:
        assert error.errno == errno.EMLINK
    if ws.storage != "hardlink" or stored.stat().st_nlink < most:
        pytest.skip("this file system gives a file as many names as one likes")
    again, once_more = commit(a="same", b="1"), commit(a="same", b="2")
    assert (again.path / "a").samefile(once_more.path / "a")
    assert fsck(ws).problems == ()


def test_a_link_in_a_checkpoint_is_refused(ws: Workspace) -> None:
    staged = stage(ws.dot, {"a": b"x"})
    (staged / "b").symlink_to("a")
    with pytest.raises(Exception, match="plain files only, and b is something else"):
        adopt(ws.objects, staged)


@settings(max_examples=15, deadline=None)
@given(TREES, TREES, st.sets(st.sampled_from(["a", "b", "sub/c", "sub/d"])))
def test_files_of_a_parent_are_what_its_manifest_says_and_take_no_room(
    before: dict[str, bytes], after: dict[str, bytes], kept: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as root:
        ws = Workspace.create(Path(root) / "w")
        parent = committed(ws, stage(ws.dot, before))
        staged = stage(ws.dot, {name: content for name, content in after.items() if name not in kept & set(before)})
        for name in kept & set(before):
            (staged / name).parent.mkdir(exist_ok=True)
            share(parent.path / name, staged / name)
        child = committed(ws, staged, parent)
        expected = after | {name: before[name] for name in kept & set(before)}
        assert {name: (child.path / name).read_bytes() for name in child.manifest.tree} == expected
        assert {name: hash_file(child.path / name) for name in child.manifest.tree} == child.manifest.tree
        new = {*expected.values()} - {*before.values()}
        assert ws.index.makers(child.id)[-1][1] == sum(map(len, new))
        assert not fsck(ws).problems


def test_a_parents_file_that_a_disk_damaged_is_not_taken_for_good_by_its_child(ws: Workspace, commit: Any) -> None:
    parent = commit(a="weights")
    times = (parent.path / "a").stat()
    (parent.path / "a").chmod(0o644)
    (parent.path / "a").write_text("weighed")
    os.utime(parent.path / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    staged = stage(ws.dot, {"b": b"new"})
    share(parent.path / "a", staged / "a")
    child = committed(ws, staged, parent)
    assert child.manifest.tree["a"] == parent.manifest.tree["a"]
    assert {each.checkpoint for each in fsck(ws).problems} == {parent.id, child.id}


def test_a_link_to_a_parents_file_is_no_file_of_it(ws: Workspace, commit: Any) -> None:
    parent = commit(a="x")
    staged = stage(ws.dot, {})
    (staged / "a").symlink_to(parent.path / "a")
    with pytest.raises(Exception, match="plain files only, and a is something else"):
        committed(ws, staged, parent)


def committed(ws: Workspace, staged: Path, parent: Checkpoint | None = None) -> Checkpoint:
    made = Made("train", (parent.id,) if parent else (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("train", config={}) as run:
        return run.commit(staged, made)
