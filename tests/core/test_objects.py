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

from llmos_cli.core.objects import Objects, files_below, hash_file, hash_files
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.du import du

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
        assert all(hash_file(Path(entry.path)).sha256 == name for name, entry in objects.names())


def test_files_are_read_only_afterwards(ws: Workspace) -> None:
    staged = stage(ws.dot, {"a": b"x"})
    adopt(ws.objects, staged)
    assert (staged / "a").stat().st_mode & 0o777 == 0o444


def test_a_damaged_object_is_replaced_and_not_spread(ws: Workspace) -> None:
    adopt(ws.objects, stage(ws.dot, {"a": b"good"}))
    path = next(Path(entry.path) for _, entry in ws.objects.names())
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
    assert list(ws.objects.names()) == []
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


def test_a_link_in_a_checkpoint_is_refused(ws: Workspace) -> None:
    staged = stage(ws.dot, {"a": b"x"})
    (staged / "b").symlink_to("a")
    with pytest.raises(Exception, match="plain files only, and b is something else"):
        adopt(ws.objects, staged)
