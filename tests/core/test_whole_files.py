"""fsck finds every whole file that is gone, and any two of a kind that stand in one another's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmos_cli.core.refs import RUNS
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.branch import branch
from llmos_cli.operations.du import du
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.tag import tag
from llmos_cli.ui import render
from tests.core.conftest import Commit, commit_to
from tests.core.killing import vouch

KEPT = ("checkpoints", "runs", ".llmos/refs", ".llmos/HEAD", ".llmos/signatures", ".llmos/audit", ".llmos/operations")
MISSED = "log.txt"
"""Of a run: that it is there, nothing says."""


@pytest.fixture
def lived(ws: Workspace) -> Workspace:
    """Two of each kind of file."""
    made = [commit_to(ws, {"a": text, "b": f"{text} too"}).id for text in ("first", "second")]
    tag(ws, "one", made[0])
    tag(ws, "two", made[1])
    branch(ws, "other", made[0])
    for each in made:
        vouch(ws, each, "k")
    assert fsck(ws).problems == () and not fsck(ws).unshared
    return ws


def files(ws: Workspace) -> list[Path]:
    found = [path for path in sorted(ws.root.rglob("*")) if path.is_file() and path.name != MISSED]
    return [path for path in found if str(path.relative_to(ws.root)).startswith(KEPT)]


@contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    aside = [path.with_name(f".{path.name}.aside") for path in paths]
    for path, kept in zip(paths, aside, strict=True):
        shutil.copy2(path, kept)
    yield
    for path, kept in zip(paths, aside, strict=True):
        kept.replace(path)


def test_every_file_that_is_gone_is_found(lived: Workspace) -> None:
    assert len(files(lived)) >= 18
    for path in files(lived):
        with put_back(path):
            path.unlink()
            assert fsck(Workspace(lived.root)).problems, path
    assert fsck(Workspace(lived.root)).problems == ()


def test_any_two_of_a_kind_that_are_exchanged_are_found(lived: Workspace) -> None:
    kinds = ("checkpoints/*/a", "checkpoints/*/manifest.json", ".llmos/refs/tags/*", ".llmos/refs/heads/*", f".llmos/{RUNS}*", ".llmos/signatures/*.sig")  # fmt: skip
    for kind in kinds:
        one, other = sorted(lived.root.glob(kind))
        first, second = one.read_bytes(), other.read_bytes()
        with put_back(one, other):
            for path, text in ((one, second), (other, first)):
                path.unlink()  # its object is the same file
                path.write_bytes(text)
            assert fsck(Workspace(lived.root)).problems, kind
    assert fsck(Workspace(lived.root)).problems == ()


def test_refs_of_runs_and_signatures_come_back(lived: Workspace) -> None:
    kept = {path: path.read_bytes() for path in files(lived) if "signatures" in path.parts or "refs/runs" in str(path)}
    first, second = (path for path in kept if "runs" in path.parts)
    first.unlink()
    second.write_bytes(kept[first])
    shutil.rmtree(lived.dot / "signatures")
    told = {problem.where: problem for problem in fsck(lived).problems}
    assert len(told) == 4 and all(each.hurts for each in told.values())
    assert "is missing, and runs/" in told[str(first.relative_to(lived.dot))].what
    assert fsck(lived, repair=True).problems == ()
    assert {path: path.read_bytes() for path in kept} == kept


def test_what_gc_collected_and_somebody_brought_again_needs_no_ref_of_its_run(ws: Workspace, commit: Commit) -> None:
    commit(a="1")
    trial = commit(a="2", move=False)
    vouch(ws, trial.id, "k")
    shutil.copytree(trial.path, ws.root / "mine")
    gc(ws, expire="now", window="now")
    shutil.copytree(ws.root / "mine", trial.path)
    assert fsck(ws).problems == ()


def test_objects_that_are_gone_are_told_and_linked_again(ws: Workspace, commit: Commit) -> None:
    first = commit(a="1" * 1000, b="x")
    if ws.storage == "copy":
        pytest.skip("this disk shares nothing")
    shutil.rmtree(ws.objects.directory)
    found = fsck(ws)
    assert found.problems == () and found.unshared == {first.id: 1001}
    assert "1.0 kB of 1 checkpoint share nothing with .llmos/objects" in render(found.view())
    commit(a="1" * 1000)  # stored again, and `du` takes it for shared
    assert fsck(ws).unshared == {first.id: 1001}
    again = fsck(ws, repair=True)
    assert [(each.where, each.source) for each in again.repaired] == [(".llmos/objects", "the files of 1 checkpoint")]
    assert again.problems == () and not again.unshared and du(ws).checkpoints == 1001
    assert sorted(path.stat().st_nlink for path in ws.objects.directory.rglob("*") if path.is_file()) in (
        [2, 3],
        [1, 1],
    )
