"""rm, gc, du, fsck: what is kept, what goes, and whether it is still what it was."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmos_cli.core.operation import Change
from llmos_cli.core.refs import STAGES
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import NotFound, UsageError
from llmos_cli.events import Note
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.du import du
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import duration, gc
from llmos_cli.operations.log import log
from llmos_cli.operations.rm import rm
from llmos_cli.operations.tag import tag
from llmos_cli.operations.undo import undo
from tests.core.forging import lines_anew

MONTHS = 90 * 86400.0


def grow_old(ws: Workspace, *checkpoints: Any) -> None:
    """As if the checkpoints had been written, and all operations done, three months ago."""
    then = time.time() - MONTHS
    for checkpoint in checkpoints:
        os.utime(checkpoint.path, (then, then))
    text = ws.oplog.path.read_text()
    for operation in ws.oplog.operations():
        text = text.replace(repr(operation.time), repr(operation.time - MONTHS))
    ws.oplog.path.write_text(text)
    lines_anew(ws)


def test_rm_drops_weights_and_keeps_lineage(ws, commit):
    first, second = commit(a="same", b="12"), commit(a="same", b="345")
    result = rm(ws, [first.id[:12]])
    assert [(each.id, each.size, each.freed) for each in result.removed] == [(first.id, 6, 2)]
    assert [each.removed for each in log(ws).checkpoints] == [False, True]
    assert ws.checkpoint().id == second.id
    with pytest.raises(NotFound, match=f"the weights of {first.id[:12]} were removed"):
        ws.checkpoint("HEAD~1")
    assert fsck(ws).problems == ()
    assert (du(ws).undoable, du(ws).unused) == (2, 0)


def test_gc_frees_what_was_removed_when_undo_reaches_it_no_more(ws, commit):
    first, second = commit(a="same", b="12"), commit(a="same", b="345")
    rm(ws, [first.id])
    assert gc(ws, expire="now").garbage == ()
    flip(first.path / "b")
    assert [problem.where for problem in fsck(ws).problems] == [f"checkpoints/{first.id[:12]}/b"]
    flip(first.path / "b")
    assert [(each.kind, each.size) for each in gc(ws, window="now", dry_run=True).garbage] == [("remains", 2)]
    grow_old(ws, first, second)
    assert [(each.kind, each.name, each.size) for each in gc(ws).garbage] == [("remains", first.id, 2)]
    assert [path.name for path in first.path.iterdir()] == ["manifest.json"]
    assert fsck(ws).problems == () and gc(ws).garbage == ()
    assert (du(ws).undoable, du(ws).unused, len(list(ws.objects.names()))) == (0, 0, 2)


def test_rm_refuses_what_is_in_use_and_then_removes_nothing(ws, commit):
    first, second = commit(a="1"), commit(a="2")
    tag(ws, "base", "HEAD~1")
    for rev, users in (("HEAD", "HEAD, branch main"), ("base", "tag base")):
        with pytest.raises(UsageError, match=f"is in use by {users}$"):
            rm(ws, [rev])
    third = commit(a="3", move=False)
    with pytest.raises(UsageError):
        rm(ws, [third.id, second.id])
    ws.oplog.apply("run small", [Change(f"{STAGES}small", None, third.id)])
    with pytest.raises(UsageError, match=r"is in use by stage small$") as error:
        rm(ws, [third.id])
    assert "a stage lets go when `llmos run` makes another" in error.value.hint and "--force" in error.value.hint
    assert ws.checkpoint(third.id)
    rm(ws, [first.id], force=True)
    assert ws.resolve("base") == first.id


def test_rm_refuses_what_a_deployment_serves(ws, commit):
    first = commit(a="1")
    commit(a="2")
    deployed = ws.begin("deploy", config={}, parents=[first.id], name="chat")
    with deployed, pytest.raises(UsageError, match="is in use by deployment chat"):
        rm(ws, [first.id])
    rm(ws, [first.id])


def test_rm_dry_run_removes_nothing(ws, commit):
    first = commit(a="1")
    commit(a="2")
    assert rm(ws, [first.id], dry_run=True).removed[0].freed == 1
    assert ws.checkpoint(first.id)


def test_what_was_removed_and_is_made_again_has_its_weights_again(ws, commit_with_config):
    first = commit_with_config("x")
    rm(ws, [first.id], force=True)
    assert commit_with_config("x").id == first.id
    assert ws.checkpoint().id == first.id
    assert fsck(ws).problems == ()


def test_gc_keeps_what_is_named_and_its_ancestors(ws, commit):
    checkpoints = [commit(a="1"), commit(a="2"), commit(a="3")]
    grow_old(ws, *checkpoints)
    assert gc(ws).garbage == ()


def test_gc_removes_what_nothing_names_after_the_grace_period(ws, commit):
    first, trial = commit(a="1"), commit(a="123", move=False)
    assert (gc(ws).garbage, gc(ws).kept) == ((), 1)
    grow_old(ws, trial)
    dry = gc(ws, dry_run=True)
    assert [(each.kind, each.name, each.size) for each in dry.garbage] == [("checkpoint", trial.id, 3)]
    assert trial.path.exists()
    assert gc(ws).garbage == dry.garbage
    assert not trial.path.exists()
    assert fsck(ws).problems == ()
    assert [entry.id for entry in ws.index.entries()] == [first.id]
    assert len(list(ws.objects.names())) == 1


def test_gc_keeps_what_undo_could_bring_back(ws, commit):
    first, second = commit(a="1"), commit(a="2")
    ws.oplog.undo()
    os.utime(second.path, (0, 0))
    assert gc(ws).garbage == ()
    grow_old(ws, first, second)
    assert [each.name for each in gc(ws).garbage] == [second.id]


def test_gc_keeps_what_undo_could_bring_back_whatever_the_grace_period(ws, commit):
    _, second = commit(a="1"), commit(a="2")
    ws.oplog.undo()
    assert gc(ws, expire="now").garbage == ()
    ws.oplog.redo()
    assert ws.checkpoint().id == second.id


def test_nothing_returns_to_a_checkpoint_that_is_gone(ws, commit):
    first, second = commit(a="1"), commit(a="2")
    ws.oplog.undo()
    grow_old(ws, second)
    assert [each.name for each in gc(ws).garbage] == [second.id]
    with pytest.raises(NotFound, match=f"cannot redo train on main: checkpoint {second.id[:12]} is gone") as caught:
        ws.oplog.redo()
    assert caught.value.hint
    assert ws.checkpoint().id == first.id


def test_gc_keeps_the_ancestors_of_the_young(ws, commit):
    root = commit(a="1")
    checkout(ws, root.id)
    old = commit(a="2")
    young = commit(a="3")
    checkout(ws, "main")
    grow_old(ws, root, old)
    assert (gc(ws).garbage, gc(ws).kept) == ((), 2)
    os.utime(young.path, (0, 0))
    assert {each.name for each in gc(ws).garbage} == {old.id, young.id}


def test_gc_never_touches_what_a_living_run_uses(ws, commit):
    commit(a="1")
    trial = commit(a="2", move=False)
    grow_old(ws, trial)
    with ws.begin("eval", config={}, parents=[trial.id]):
        assert gc(ws, expire="now").garbage == ()
    assert len(gc(ws, expire="now").garbage) == 1


def test_gc_tidies_up_after_the_dead(ws, commit):
    commit(a="1")
    pid = os.fork()
    if not pid:
        staging = ws.stage()
        (staging.__enter__() / "half").write_text("x" * 10)
        os._exit(9)
    os.waitpid(pid, 0)
    (stray := ws.objects.path("ab" * 32)).parent.mkdir()
    stray.write_text("stray")
    assert [(each.kind, each.size) for each in gc(ws).garbage] == [("leftover", 10)]
    assert stray.exists(), "nobody holds it, but it is younger than a day"
    assert [(each.kind, each.size) for each in gc(ws, expire="now").garbage] == [("object", 5)]
    assert gc(ws).garbage == () and not stray.exists()


def test_a_young_object_outlives_the_checkpoints_that_go(ws, commit):
    """What they held goes with them; what nobody holds, because its folder was removed by hand, stays for its day."""
    commit(a="1")
    trial, lost = commit(a="123", move=False), commit(a="4567", move=False)
    held, last = (ws.objects.path(each.manifest.tree["a"].sha256) for each in (trial, lost))
    grow_old(ws, trial)
    shutil.rmtree(lost.path)
    assert [each.kind for each in gc(ws).garbage] == ["checkpoint"]
    assert last.exists() and not held.exists()
    assert [(each.kind, each.size) for each in gc(ws, expire="now").garbage] == [("object", 4)]
    assert not last.exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("now", 0), ("30d", 2592000), ("12h", 43200), ("1.5h", 5400), ("2w", 1209600)]
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "-1d", "1y"])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="is not a duration"):
        duration(text)


def flip(path: Path) -> None:
    """One bit, behind everybody's back: neither size nor times change."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def edit_manifest(path: Path) -> None:
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))


DAMAGE: dict[str, tuple[Callable[[Workspace, Any], object], str, str]] = {
    "flipped bit": (lambda ws, c: flip(c.path / "a"), "checkpoints/{id}/a", "has other bytes than were saved"),
    "cut off": (lambda ws, c: os.truncate(c.path / "a", 3), "checkpoints/{id}/a", "has 3 bytes instead of 10"),
    "lost file": (lambda ws, c: (c.path / "a").unlink(), "checkpoints/{id}/a", "is missing"),
    "extra file": (
        lambda ws, c: (c.path / "x").write_text("x"),
        "checkpoints/{id}/x",
        "does not belong to the checkpoint, which is whole without: --repair moves it to .llmos/strays",
    ),
    "a link": (
        lambda ws, c: ((c.path / "a").unlink(), (c.path / "a").symlink_to("b")),
        "checkpoints/{id}/a",
        "is missing",
    ),
    "manifest": (
        lambda ws, c: edit_manifest(c.path / "manifest.json"),
        "checkpoints/{id}/manifest.json",
        "was altered: its hash is not the checkpoint's id",
    ),
    "no manifest": (lambda ws, c: (c.path / "manifest.json").unlink(), "checkpoints/{id}", "manifest.json is missing"),
    "lost checkpoint": (lambda ws, c: shutil.rmtree(c.path), "refs/tags/base", "names {id}, which is missing"),
    "bad ref": (
        lambda ws, c: (ws.dot / "refs/tags/base").write_text("?"),
        "refs/tags/base",
        "holds '?', which is no checkpoint id",
    ),
    "no head": (lambda ws, c: (ws.dot / "HEAD").unlink(), "HEAD", "HEAD is missing"),
    "stranger": (lambda ws, c: (ws.checkpoints / "junk").mkdir(), "checkpoints/junk", "is not a checkpoint"),
    "events": (
        lambda ws, c: next((ws.root / "runs").iterdir()).joinpath("events.jsonl").write_text("?\n"),
        "/events.jsonl",
        "line 1 is not JSON",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_fsck_finds(ws, commit, llmos, monkeypatch, kind):
    checkpoint = commit(a="0123456789", b="x")
    commit(a="other", b="x")
    tag(ws, "base", "HEAD~1")
    assert fsck(ws).problems == ()
    damage, where, what = DAMAGE[kind]
    damage(ws, checkpoint)
    problems = fsck(Workspace(ws.root)).problems
    assert any(
        where.format(id=checkpoint.id[:12]) in problem.where and what.format(id=checkpoint.id[:12]) in problem.what
        for problem in problems
    ), problems
    if where.startswith("checkpoints/{id}") and kind != "no manifest":
        assert set(problems[0].hurts) == {"main", "base"}
    monkeypatch.chdir(ws.root)
    told = llmos("fsck")
    assert told.code == 5
    assert "error: " in told.err and "Traceback" not in told.err


def test_fsck_of_a_whole_workspace_says_what_it_did(ws, commit, llmos, monkeypatch):
    commit(a="0123456789"), commit(a="0123456789", b="x")
    monkeypatch.chdir(ws.root)
    told = llmos("fsck")
    assert (told.code, told.out) == (0, "2 checkpoints, 2 files, 11 B hashed: everything is as it was saved\n")


def test_fsck_says_how_far_it_is_once_when_it_is_quick(ws, commit, llmos, monkeypatch):
    commit(a="1" * 1_500_000), commit(a="2" * 1_500_000, b="x" * 10)
    monkeypatch.chdir(ws.root)
    assert llmos("fsck").err == "fsck 3/3 MB\n"


def test_du_tells_a_trial_from_a_training(ws, commit):
    commit(a="1")
    made = ws.checkpoint().manifest.made
    with ws.begin("trial", config={}) as run, ws.stage() as staged:
        (staged / "a").write_text("2")
        run.commit(staged, replace(made, time="2026-11-22T10:45:01Z"), move=False)
    assert sorted(each.operation for each in du(ws).usage) == ["train m", "trial m"]


def test_fsck_settles_changed_times(ws, commit, tmp_path):
    checkpoint = commit(a="1")
    os.utime(checkpoint.path / "a", (1, 1))
    fsck(ws)
    assert ws.index.file_times(checkpoint.id)["a"] == 10**9


# Every byte


def damaged_at(data: bytes, where: int, how: str, byte: int) -> bytes:
    where %= len(data)
    if how == "flipped":
        return data[:where] + bytes([data[where] ^ (1 << byte % 8)]) + data[where + 1 :]
    if how == "missing":
        return data[:where] + data[where + 1 :]
    return data[:where] + bytes([data[where] if how == "doubled" else byte]) + data[where:]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(which=-1, where=16, how="flipped", byte=7)  # HEAD is no UTF-8 any more
@given(
    which=st.integers(0),
    where=st.one_of(st.integers(0, 3), st.integers(0)),
    how=st.sampled_from(["flipped", "missing", "doubled", "added"]),
    byte=st.one_of(st.sampled_from(b"0123456789+-.eE \n"), st.integers(0, 255)),
)
def test_fsck_finds_every_byte(ws, commit, which, where, how, byte):
    """In files of checkpoints, objects, manifests and refs, at any place."""
    if ws.head().checkpoint is None:
        commit(a="0123456789", b="x"), commit(a="other", b="x")
        tag(ws, "base", "HEAD~1")
        branch(ws, "other")
    kept = [*ws.checkpoints.rglob("*"), *ws.objects.directory.rglob("*"), *(ws.dot / "refs").rglob("*")]
    files = [*sorted(path for path in kept if path.is_file()), ws.dot / "HEAD"]
    path = files[which % len(files)]
    good, times = path.read_bytes(), path.stat()
    path.chmod(0o644)
    try:
        path.write_bytes(damaged_at(good, where, how, byte))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        problems = fsck(Workspace(ws.root)).problems
        assert problems, f"{how} byte {where % len(good)} of {path}"
        if ws.checkpoints in path.parents:
            hurt = path.relative_to(ws.checkpoints).parts[0]
            assert hurt in {problem.checkpoint for problem in problems}
    finally:
        path.write_bytes(good)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fsck(Workspace(ws.root)).problems == ()


SPELT = {
    "1.0": ("1", "1.00", "1e0", "1.0e0", "10e-1"),
    "0.0": ("-0.0", "0", "0e5", "0.00"),
    "2e-05": ("2e-5", "0.00002", "2E-05"),
    "1e-07": ("1e-7",),
    "1e+21": ("1e21", "1000000000000000000000.0"),
    "0.05": ("0.050", "5e-2"),
}
"""How numbers of the configs of `commit` are written, and other spellings of the same canonical form."""


def respelt(text: str, number: str, other: str) -> str:
    found, count = re.subn(rf"(?<=: ){re.escape(number)}(?=,?\n)", other, text)
    assert count == 1
    return found


def test_a_number_that_is_spelt_otherwise_is_damage(ws, commit, llmos, monkeypatch):
    made = commit(a="x")
    path, good = made.path / "manifest.json", (made.path / "manifest.json").read_text()
    path.chmod(0o644)
    monkeypatch.chdir(ws.root)
    for number, spellings in SPELT.items():
        for other in spellings:
            path.write_text(respelt(good, number, other))
            told = fsck(Workspace(ws.root)).problems
            assert [each.what for each in told] == ["was altered, though it means the same"], other
            assert llmos("show").code == 5
    path.write_text(
        respelt(good, "1e+21", str(10**21))
    )  # no double holds all integers of that size: no manifest may have one
    assert [each.what for each in fsck(Workspace(ws.root)).problems] == [
        "was altered: its hash is not the checkpoint's id"
    ]
    path.write_text(good)
    assert fsck(Workspace(ws.root)).problems == ()


def test_a_manifest_of_before_there_was_a_hash_is_as_good(ws, commit, tmp_path, llmos, monkeypatch):
    made = commit(a="x")
    path = made.path / "manifest.json"
    path.chmod(0o644)
    lines = path.read_text().splitlines(keepends=True)
    old = "".join([lines[0], *lines[2:]])
    assert '"hash"' in lines[1] and '"hash"' not in old
    path.write_text(old)
    monkeypatch.chdir(ws.root)
    assert fsck(Workspace(ws.root)).problems == () and llmos("show").code == 0
    assert llmos("remote", "add", "origin", tmp_path / "far").code == llmos("push").code == 0
    assert llmos("clone", tmp_path / "far", tmp_path / "copy").code == 0
    assert (
        tmp_path / "copy" / "checkpoints" / made.id / "manifest.json"
    ).read_text() == old  # its signature is over that
    for number, spelling in (("0.0", "-0.0"), ("1e-07", "1e-7"), ("1.0", "1.00")):
        path.write_text(respelt(old, number, spelling))
        assert [each.what for each in fsck(Workspace(ws.root)).problems] == ["was altered, though it means the same"]


MOVED = {
    "branch": ("refs/heads/main", "is at {first}, and the last operation on it (`train on main`) left it at {second}"),
    "tag": ("refs/tags/base", "is at {second}, and the last operation on it (`tag base`) left it at {first}"),
    "HEAD": ("HEAD", "is at other, and the last operation on it (`checkout main`) left it at main"),
    "deleted": ("refs/tags/base", "is at nothing, and the last operation on it (`tag base`) left it at {first}"),
}


@pytest.mark.parametrize("kind", MOVED)
def test_fsck_finds_what_was_moved_behind_our_back(ws, commit, kind):
    first, second = commit(a="1").id, commit(a="2").id
    tag(ws, "base", first)
    checkout(ws, create="other")
    checkout(ws, "main")
    edits = {"branch": first + "\n", "tag": second + "\n", "HEAD": "ref: refs/heads/other\n", "deleted": None}
    path = ws.dot / MOVED[kind][0]
    path.unlink() if edits[kind] is None else path.write_text(edits[kind])
    where, what = MOVED[kind]
    assert told(ws) == [(where, what.format(first=first[:12], second=second[:12]))]


@pytest.mark.parametrize(
    ("ref", "way"),
    [
        ("refs/heads/evil", ": `llmos branch -d evil` takes it away"),
        ("refs/tags/a/evil", ": `llmos tag -d a/evil` takes it away"),
        ("refs/stages/evil", ""),
        ("refs/data/evil", ""),
    ],
)
def test_fsck_finds_a_ref_that_no_operation_made_and_one_that_names_nothing(ws, commit, ref, way):
    first, second = commit(a="1").id, commit(a="2").id
    if ref.startswith("refs/data"):
        first, second = (kept_rows(ws, text) for text in ("one", "two"))
    (ws.dot / ref).parent.mkdir(parents=True, exist_ok=True)
    (ws.dot / ref).write_text(first + "\n")
    assert told(ws) == [(ref, f"no operation made it{way}")]
    ws.refs.write(ref, None)
    ws.oplog.apply("make it", [Change(ref, None, first)])
    assert told(ws) == []
    (ws.dot / ref).write_text(second + "\n")
    left = f"and the last operation on it (`make it`) left it at {first[:12]}"
    assert told(ws) == [(ref, f"is at {second[:12]}, {left}")]
    (ws.dot / ref).write_text("f" * 64 + "\n")
    assert told(ws)[0] == (ref, f"names {'f' * 12}, which is missing")
    (ws.dot / ref).write_bytes(b"\xff" + first[1:].encode() + b"\n")
    assert [where for where, _ in told(ws)] == [ref]


def kept_rows(ws: Workspace, text: str) -> str:
    from llmos_cli.data import snapshots
    from llmos_cli.data.rows import Rows

    made = snapshots.kept({"train": Rows({"text": [text]})}, source="rows", asked="", store=ws.snapshots.store)
    ws.snapshots.write(made)
    return made.id


def told(ws: Workspace) -> list[tuple[str, str]]:
    return [(problem.where, problem.what) for problem in fsck(Workspace(ws.root)).problems]


def test_an_index_that_says_something_else_is_made_anew_and_said_so(ws, commit, llmos, monkeypatch):
    import sqlite3

    first = commit(a="1")
    commit(a="2")
    for folder in (ws.checkpoints, ws.root / "runs"):
        os.utime(folder, (10**9, 10**9))  # settled: not looked at again
    assert not fsck(Workspace(ws.root)).index_differed
    with sqlite3.connect(ws.dot / "index.sqlite") as db:
        db.execute("DELETE FROM checkpoints WHERE id = ?", (first.id,))
    monkeypatch.chdir(ws.root)
    told = llmos("fsck")
    assert told.code == 0
    assert told.out.startswith("the index differed from the files, and was made anew\n")
    assert len(Workspace(ws.root).index.entries()) == 2
    assert not fsck(Workspace(ws.root)).index_differed


def test_repair_from_a_checkpoint_with_a_copy_of_its_own(ws, commit, llmos, monkeypatch):
    """As it is where the disk shares nothing, or by reflinks."""
    first, second = commit(a="0123456789", b="1"), commit(a="0123456789", b="2")
    (ws.dot / "storage").write_text("copy\n")
    shutil.rmtree(ws.objects.directory)
    shutil.copyfile(first.path / "a", copy := ws.root / "copy")
    copy.replace(first.path / "a")
    flip(first.path / "a")
    monkeypatch.chdir(ws.root)
    assert llmos("fsck").code == 5
    told = llmos("fsck", "--repair")
    assert told.code == 0, told.err
    assert f"repaired checkpoints/{first.id[:12]}/a from checkpoint {second.id[:12]}\n" in told.out
    assert (first.path / "a").read_text() == "0123456789"


@pytest.mark.parametrize("lost", [[0], [1], [0, 1, 2]], ids=["a parent", "what a tag names too", "all of them"])
def test_repair_brings_back_whole_checkpoints(ws, commit, tmp_path, lost):
    from llmos_cli.operations.push import push
    from llmos_cli.operations.remote import add

    checkpoints = [commit(a=text, b="same") for text in "123"]
    tag(ws, "base", "HEAD~1")
    add(ws, "empty", str(tmp_path / "empty"))
    add(ws, "origin", str(tmp_path / "far"))
    push(ws, remote="origin")
    for each in lost:
        shutil.rmtree(checkpoints[each].path)
    shutil.rmtree(ws.objects.directory)
    assert fsck(Workspace(ws.root)).problems
    result = fsck(Workspace(ws.root), repair=True)
    assert result.problems == ()
    back = {f"checkpoints/{checkpoints[each].id[:12]}" for each in lost}
    repaired = {(each.where, each.source) for each in result.repaired if each.where != ".llmos/objects"}
    assert repaired == {(where, "origin") for where in back}
    assert [(each.path / "a").read_text() for each in checkpoints] == ["1", "2", "3"]


def test_a_manifest_alone_comes_back_where_there_is_no_more_and_that_is_said(ws, commit, tmp_path):
    from llmos_cli.operations.push import push
    from llmos_cli.operations.remote import add

    first = commit(a="1")
    commit(a="2")
    rm(ws, [first.id])
    add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    shutil.rmtree(first.path)
    (ws.dot / "dropped" / first.id).unlink()
    said = []
    result = fsck(Workspace(ws.root), repair=True, emit=said.append)
    where = f"checkpoints/{first.id[:12]}/manifest.json"
    assert result.problems == () and [each.where for each in result.repaired] == [where]
    assert f"origin has only the manifest of {first.id[:12]}: its weights count as removed" in {
        each.message for each in said if isinstance(each, Note)
    }


def test_what_no_remote_has_stays_missing(ws, commit, tmp_path):
    from llmos_cli.operations.push import push
    from llmos_cli.operations.remote import add

    commit(a="1")
    add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    shutil.rmtree(commit(a="2").path)
    result = fsck(Workspace(ws.root), repair=True)
    assert result.repaired == () and {each.where for each in result.problems} >= {"HEAD", "refs/heads/main"}


def test_repair_from_a_remote(ws, commit, tmp_path):
    from llmos_cli.operations.push import push
    from llmos_cli.operations.remote import add

    checkpoints = [commit(a="0123456789", b="1"), commit(a="0123456789", b="2")]
    add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    for each in checkpoints:
        flip(each.path / "b"), (each.path / "a").unlink()
    shutil.rmtree(ws.objects.directory)
    edit_manifest(checkpoints[0].path / "manifest.json")
    result = fsck(ws, repair=True)
    assert result.problems == ()
    assert {each.where for each in result.repaired} == {
        f"checkpoints/{each.id[:12]}/{name}" for each in checkpoints for name in ("a", "b")
    } | {f"checkpoints/{checkpoints[0].id[:12]}/manifest.json"}


def test_weights_that_were_removed_are_repaired_while_undo_can_bring_them_back(ws, commit, tmp_path):
    from llmos_cli.operations.push import push
    from llmos_cli.operations.remote import add

    first = commit(a="0123456789", b="1")
    commit(a="another")
    add(ws, "origin", str(tmp_path / "far"))
    push(ws), rm(ws, [first.id], force=True)
    flip(first.path / "a"), (first.path / "b").unlink()
    shutil.rmtree(ws.objects.directory)
    result = fsck(ws, repair=True)
    assert result.problems == () and {each.where.rpartition("/")[2] for each in result.repaired} >= {"a", "b"}
    assert first.id in ws.dropped
    undo(ws)
    assert (ws.checkpoint(first.id).path / "a").read_text() == "0123456789"


def test_what_has_no_good_copy_stays_damaged_and_is_told(ws, commit):
    checkpoint = commit(a="0123456789")
    flip(checkpoint.path / "a")
    result = fsck(ws, repair=True)
    assert result.repaired == ()
    assert [problem.file for problem in result.problems] == ["a"]


# Keeping the last ones


def removed(ws: Workspace) -> list[bool]:
    """Of the current line, the newest first."""
    return [each.removed for each in log(Workspace(ws.root)).checkpoints]


def test_gc_keep_last_drops_older_weights_and_keeps_manifests_tags_and_what_is_in_use(ws, commit):
    checkpoints = [commit(a=str(number), b="same") for number in range(6)]
    tag(ws, "good", checkpoints[1].id)
    with ws.begin("deploy", config={}, parents=[checkpoints[2].id], name="chat"):
        dry = gc(ws, keep_last=2, window="now", dry_run=True)
        assert {(each.kind, each.name, each.size) for each in dry.garbage} == {
            ("weights", checkpoints[3].id, 1),
            ("weights", checkpoints[0].id, 1),
        }
        assert removed(ws) == [False] * 6
        assert gc(ws, keep_last=2, window="now").garbage == dry.garbage
    assert removed(ws) == [False, False, True, False, False, True]
    assert fsck(ws).problems == ()
    assert gc(ws, keep_last=2, window="now", dry_run=True).garbage[0].name == checkpoints[2].id


def test_gc_keep_tagged_leaves_every_branch_its_last_one(ws, commit):
    first, second, third, _ = [commit(a=str(number)) for number in range(4)]
    branch(ws, "other", second.id)
    tag(ws, "good", first.id)
    gc(ws, keep_tagged=True, window="now")
    assert removed(ws) == [False, True, False, False]
    assert [operation.name for operation in ws.oplog.operations()][-1] == "gc: weights of 1 checkpoint"
    with pytest.raises(NotFound, match=f"the weights of {third.id[:12]} were removed") as error:
        ws.checkpoint(third.id)
    assert error.value.hint.startswith(f"`llmos fetch --weights {third.id[:12]}` asks a remote")


def test_gc_keep_last_leaves_undo_and_redo_what_they_go_back_to(ws, commit, llmos, monkeypatch):
    first, second, third = commit(a="1"), commit(a="2"), commit(a="3")
    ws.oplog.undo()
    assert (gc(ws, keep_last=1).garbage, gc(ws, keep_tagged=True).undoable) == ((), 2)
    monkeypatch.chdir(ws.root)
    assert (
        "2 checkpoints that are not among the last have their weights as long as `undo`"
        in llmos("gc", "--keep-last", "1").out
    )
    for go in (ws.oplog.redo, ws.oplog.undo, ws.oplog.undo, ws.oplog.redo, ws.oplog.redo):
        go()
        assert ws.checkpoint().id in (first.id, second.id, third.id)
    grow_old(ws, first, second, third)
    assert {(each.kind, each.name) for each in gc(ws, keep_last=1).garbage} == {
        ("weights", each.id) for each in (first, second)
    }


def test_gc_says_what_a_checkpoint_was_called(ws, commit):
    commit(a="1")
    branch(ws, "try")
    checkout(ws, "try")
    trial = commit(a="2")
    checkout(ws, "main")
    delete_branch(ws, "try")
    grow_old(ws, trial)
    assert [(each.name, each.called) for each in gc(ws, dry_run=True).garbage] == [
        (trial.id, "train m, once branch try")
    ]


def test_gc_keeps_what_a_run_that_can_be_resumed_began_with(ws, commit):
    commit(a="0")
    parent = commit(a="1", move=False)
    with pytest.raises(KeyError), ws.begin("prune", config={}, parents=[parent.id]) as run:
        run.state.mkdir()
        raise KeyError
    grow_old(ws, parent)
    assert gc(ws, expire="1h").garbage == ()
    shutil.rmtree(run.state)
    assert [each.name for each in gc(ws, expire="1h").garbage] == [parent.id]


def test_gc_keeps_nothing_for_nobody(ws, commit):
    with pytest.raises(UsageError, match="--keep-last 0 would leave branches nothing"):
        gc(ws, keep_last=0)
