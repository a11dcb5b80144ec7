"""HEAD or a ref is damaged or gone: it is said by what needs it, can be overwritten by name, and comes back from the log of operations."""

from __future__ import annotations

import shutil

import pytest

from llmos_cli.core.lastly import moved_by_hand
from llmos_cli.core.operation import Change
from llmos_cli.core.refs import HEAD
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.operations.branch import branch, delete_branch
from llmos_cli.operations.checkout import checkout
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.log import log
from llmos_cli.operations.status import status
from llmos_cli.operations.tag import delete_tag, tag

DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"zz\xff\n"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "elsewhere": lambda path: path.write_text("f" * 64 + "\n"),
    "blanks": lambda path: path.write_bytes(b" " + path.read_bytes()),
}
REFS = (
    HEAD,
    "refs/heads/main",
    "refs/heads/other",
    "refs/tags/base",
    "refs/runs/RUN",
    "refs/remotes/origin/heads/main",
)


@pytest.fixture
def lived(ws, commit) -> Workspace:
    commit(a="1"), commit(a="2")
    tag(ws, "base", "HEAD~1")
    branch(ws, "other")
    commit(a="3")
    ws.refs.write("refs/remotes/origin/heads/main", ws.resolve("base"))
    return ws


def said(ws: Workspace) -> dict[str, str]:
    return {str(path.relative_to(ws.dot)): path.read_text() for path in (ws.dot / "refs").rglob("*") if path.is_file()}


def test_fsck_repairs_each(lived):
    """But for those of runs and remotes that are gone or were moved: the log knows nothing of these."""
    run = next(lived.refs.names("refs/runs/"))
    for ref, how in ((ref.replace("RUN", run), how) for ref in REFS for how in DAMAGE):
        logs = not ref.startswith(("refs/runs", "refs/remotes"))
        if not logs and how in ("gone", "elsewhere"):
            continue
        before, head, logged = said(lived), lived.refs.read(HEAD), len(list(lived.oplog.operations()))
        DAMAGE[how](lived.dot / ref)
        result = fsck(Workspace(lived.root), repair=True)
        assert (result.problems, [each.where for each in result.repaired]) == ((), [ref]), how
        assert lived.refs.read(HEAD) == head
        forgotten = ref.startswith("refs/remotes") and how != "blanks"  # until the next fetch
        assert said(lived) == {name: text for name, text in before.items() if not (forgotten and name == ref)}
        assert len(list(lived.oplog.operations())) == logged + (logs and how != "blanks")
        if forgotten:
            lived.refs.write(ref, lived.resolve("base"))


def test_a_folder_in_the_place_of_a_ref_is_repaired_and_what_is_in_it_named(lived):
    before = said(lived)
    (lived.dot / "refs/heads/other").unlink()
    (lived.dot / "refs/heads/other/empty").mkdir(parents=True)
    assert fsck(lived, repair=True).problems == () and said(lived) == before
    (lived.dot / "refs/heads/other").unlink()
    lived.refs.write("refs/heads/other/stray", lived.resolve("base"))
    (lived.dot / "refs/tags/base").unlink()
    result = fsck(lived, repair=True)
    assert [each.where for each in result.repaired] == ["refs/tags/base"], "all that can be"
    told = {problem.where: problem.what for problem in result.problems}
    assert told["refs/heads/other"].endswith("; refs/heads/other/stray stands in its way")
    delete_branch(lived, "other/stray")
    assert [each.where for each in fsck(lived, repair=True).repaired] == ["refs/heads/other"] and said(lived) == before


def test_all_of_them_come_back_in_one_operation_that_undo_takes_back(lived):
    before = said(lived)
    for ref in ("refs/heads/other", "refs/tags/base"):
        (lived.dot / ref).unlink()
    (lived.dot / HEAD).write_text("garbage\n")
    assert fsck(lived, repair=True).problems == ()
    assert said(lived) == before
    last = list(lived.oplog.operations())[-1]
    assert [change.what for change in last.changes] == [HEAD, "refs/heads/other", "refs/tags/base"]
    lived.oplog.undo()
    assert said(lived).keys() == before.keys() - {"refs/heads/other", "refs/tags/base"}
    assert lived.head().branch == "main"
    lived.oplog.redo()
    assert said(lived) == before


def test_a_ref_whose_checkpoint_is_missing_is_not_put_back(lived, tmp_path):
    third = lived.checkpoint()
    (lived.dot / "refs/heads/main").unlink()
    third.path.rename(tmp_path / "aside")
    assert "refs/heads/main" in [problem.where for problem in fsck(lived, repair=True).problems]
    assert lived.refs.read("refs/heads/main") is None
    (tmp_path / "aside").rename(third.path)
    assert fsck(Workspace(lived.root), repair=True).problems == ()


@pytest.mark.parametrize("how", ["garbage", "empty"])
def test_a_name_that_makes_no_sense_can_be_moved_and_deleted(lived, how):
    second, main = lived.resolve("other"), lived.resolve("main")
    DAMAGE[how](lived.dot / "refs/tags/base")
    with pytest.raises(Corrupt, match="refs/tags/base holds") as told:
        tag(lived, "base")
    assert "fsck --repair" in told.value.hint
    base = lived.oplog.left()["refs/tags/base"][0]
    assert tag(lived, "base", second, force=True).before == base
    assert lived.resolve("base") == second
    lived.oplog.undo()
    assert lived.resolve("base") == base
    DAMAGE[how](lived.dot / "refs/tags/base")
    assert tag(lived, "base", base, force=True).checkpoint == base  # where it was
    DAMAGE[how](lived.dot / "refs/tags/base")
    delete_tag(lived, "base")
    lived.oplog.undo()
    assert lived.resolve("base") == base
    DAMAGE[how](lived.dot / "refs/heads/other")
    assert branch(lived, "other", main, force=True).before == second
    DAMAGE[how](lived.dot / "refs/heads/other")
    delete_branch(lived, "other")
    assert fsck(lived).problems == ()


@pytest.mark.parametrize("how", ["garbage", "empty", "gone"])
def test_checkout_writes_a_head_that_makes_no_sense(lived, how):
    for target in ("other", "main", "base"):
        DAMAGE[how](lived.dot / HEAD)
        with pytest.raises(Corrupt, match="HEAD"):
            status(lived)
        checkout(lived, target)
        assert lived.resolve("HEAD") == lived.resolve(target)
        assert fsck(lived).problems == ()
    lived.oplog.undo()
    assert lived.head().branch == "main"


def test_a_branch_that_is_gone_is_not_one_without_checkpoint(lived, commit):
    (lived.dot / "refs/heads/main").unlink()
    asked = (status, log, lambda ws: ws.resolve("main~1"), lambda ws: checkout(ws, "main"), lambda _: commit(a="4"))
    for ask in asked:
        with pytest.raises(Corrupt, match=r"^branch main is gone, and the last operation on it left it at") as told:
            ask(Workspace(lived.root))
        assert "fsck --repair" in told.value.hint
    (lived.dot / "refs/tags/base").unlink()
    with pytest.raises(Corrupt, match=r"^tag base is gone"):
        lived.resolve("base")


@pytest.mark.parametrize("how", ["garbage", "gone", "elsewhere"])
def test_gc_removes_nothing_that_a_damaged_ref_may_have_named(lived, commit, how):
    named = commit(a="4", move=False)
    tag(lived, "mine", named.id)
    gc(lived, expire="now", window="now")
    good = (lived.dot / "refs/tags/mine").read_bytes()
    DAMAGE[how](lived.dot / "refs/tags/mine")
    with pytest.raises(Corrupt):
        gc(Workspace(lived.root), expire="now", window="now")
    assert named.path.is_dir()
    (lived.dot / "refs/tags/mine").write_bytes(good)
    assert gc(lived, expire="now", window="now").garbage == ()


def test_head_on_a_branch_that_never_was_is_said_and_put_back(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    commit("train", a="a")
    (ws.dot / "HEAD").write_text("ref: refs/heads/nowhere\n")
    assert llmos("status").out.startswith("on branch nowhere: no checkpoint, `llmos log --all` lists those of others")
    assert llmos("log").out == "no checkpoint on branch nowhere: `llmos log --all` lists those of others\n"
    assert llmos("fsck").code == 5
    assert llmos("fsck", "--repair").code == 0
    assert llmos("status").out.startswith("on branch main at ")


def test_what_is_called_as_no_ref_can_be_is_read_by_nobody(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    commit("train", a="a")
    strange = [ws.dot / "refs" / "heads" / "x.lock", ws.dot / "refs" / "zzz"]
    for path in strange:
        path.touch()
    (ws.dot / "refs" / "tags").mkdir(exist_ok=True)
    (ws.dot / "refs" / "tags" / "bad").write_text("abc\n")
    assert llmos("log").code == 5  # of the tag, which may be damaged
    said = llmos("fsck", "--repair")
    assert said.code == 5 and "refs/tags/bad" in said.out and said.out.count("move it away") == 2
    assert (llmos("log").code, llmos("tag").out) == (0, "no tags yet\n")
    for path in strange:
        path.unlink()
    assert llmos("fsck").code == 0


def test_a_ref_that_was_moved_by_hand_is_said_by_what_reads_it(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    first, second = commit(a="1"), commit(a="2")
    tag(ws, "one", first.id)
    assert llmos("status").err == llmos("show", "one").err == ""
    ws.refs.write("refs/heads/main", first.id)
    ws.refs.write("refs/tags/two", second.id)
    moved = f"warning: main is at {first.id[:12]}, by no command: the last operation left it at {second.id[:12]}"
    for words in (("status",), ("log",), ("show",), ("tag", "three")):
        assert llmos(*words).err.count(moved) == 1, words
    made = llmos("show", "two")
    assert (made.code, f"tags/two is at {second.id[:12]}, by no command: none made it" in made.err) == (0, True)
    (ws.dot / "pending.json").write_text("{}")  # somebody is moving it
    assert not moved_by_hand(ws.dot, ws.refs, "refs/heads/main")
    (ws.dot / "pending.json").unlink()
    assert llmos("fsck", "--repair").code == 5  # a tag that no operation made stays
    assert llmos("tag", "-d", "two").code == 0
    assert (llmos("status").err, llmos("fsck").code) == ("", 0)


def test_without_any_refs_it_is_a_workspace_still_and_they_come_back(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    made = commit(a="1")
    tag(ws, "one")
    shutil.rmtree(ws.dot / "refs")
    gone = llmos("status")
    assert (gone.code, "branch main is gone" in gone.err) == (5, True)
    assert (llmos("init").code, llmos("gc").code) == (2, 5)
    assert llmos("fsck", "--repair").code == 0
    assert (ws.resolve(), ws.resolve("one")) == (made.id, made.id)


@pytest.mark.parametrize("lost", ["manifest", "folder"])
def test_nothing_new_names_what_is_not_whole(ws: Workspace, commit, llmos, monkeypatch, lost: str) -> None:
    monkeypatch.chdir(ws.root)
    made = commit(a="1")
    branch(ws, "other")
    tag(ws, "one")
    commit(a="2")
    (made.path / "manifest.json").rename(ws.root / "aside") if lost == "manifest" else made.path.rename(ws.root / "as")
    for words in (("tag", "new", "one"), ("branch", "new", "other"), ("checkout", "other"), ("checkout", "one")):
        ran = llmos(*words)
        assert (ran.code, "is missing" in ran.err) == (5, True), words
    assert [*ws.refs.names("refs/tags/")] == ["one"] and ws.head().branch == "main"
    gone = f"{made.id[:12]}  its checkpoint is missing or cannot be read: `llmos fsck`"
    assert gone in llmos("branch").out or lost == "manifest"  # which the index still knows
    assert gone in llmos("tag").out or lost == "manifest"
    told = llmos("fsck")
    assert told.code == 5 and "hurt: main, one, other" in told.err


def test_a_head_that_no_command_moved_is_found_elsewhere(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    made = commit(a="1")
    branch(ws, "other")
    (ws.dot / "HEAD").write_text("ref: refs/heads/other\n")
    assert [(each.where, "no operation moved it" in each.what) for each in fsck(ws).problems] == [("HEAD", True)]
    assert llmos("fsck", "--repair").code == 0
    assert (ws.dot / "HEAD").read_text() == "ref: refs/heads/main\n" and ws.resolve() == made.id


def test_lists_say_what_somebody_did_to_names(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    first, second = commit(a="1"), commit(a="2")
    for each in ("one", "two", "ü"):
        tag(ws, each, first.id)
    for each in ("tag", "log", "branch"):
        assert llmos(each).err == ""
    (ws.dot / "refs/tags/one").unlink()
    (ws.dot / "refs/tags/ü").unlink()
    ws.refs.write("refs/tags/two", second.id)
    ws.refs.write("refs/heads/mine", second.id)
    left = f"by no command: the last operation left it at {first.id[:12]}; `llmos fsck` tells more"
    moved = [
        f"warning: tags/one is gone, {left}",
        f"warning: tags/two is at {second.id[:12]}, {left}",
        f"warning: tags/ü is gone, {left}",
    ]
    made = f"warning: mine is at {second.id[:12]}, by no command: none made it; `llmos fsck` tells more"
    assert llmos("tag").err.splitlines() == moved
    assert llmos("branch").err.splitlines() == [made]
    assert llmos("log").err.splitlines() == [made, *moved[:2], "warning: so is 1 more: `llmos fsck` lists them"]
    assert llmos("fsck", "--repair").code == 5  # a branch that no operation made stays
    assert llmos("branch", "-d", "mine").code == 0
    assert (llmos("tag").err, llmos("log").err, llmos("fsck").code) == ("", "", 0)


@pytest.mark.parametrize("how", ["gone", "elsewhere"])
def test_what_a_name_kept_before_somebody_moved_it_is_not_removed(
    ws: Workspace, commit, llmos, monkeypatch, how
) -> None:
    monkeypatch.chdir(ws.root)
    first, second = commit(a="1"), commit(a="2")
    commit(a="3")
    tag(ws, "mine", first.id)
    DAMAGE[how](ws.dot / "refs/tags/mine")
    kept = llmos("rm", first.id[:12])
    assert (kept.code, "refs/tags/mine is not where the log of operations left it" in kept.err) == (5, True)
    assert llmos("rm", second.id[:12]).code == 0, "the tag never named it"
    assert llmos("fsck", "--repair").code == 0
    assert "is in use by tag mine" in llmos("rm", first.id[:12]).err


def test_a_stage_whose_name_was_taken_away_is_said(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    made = commit(a="1")
    ws.oplog.apply("run small", [Change("refs/stages/small", None, made.id)])
    assert llmos("show", "stages/small").err == ""
    (ws.dot / "refs/stages/small").unlink()
    gone = llmos("show", "stages/small")
    assert (gone.code, "stage small is gone, and the last operation on it left it at" in gone.err) == (5, True)
    assert "stages/small is gone, by no command" in llmos("log").err
    assert llmos("fsck", "--repair").code == 0 and llmos("show", "stages/small").code == 0


def test_lists_stand_a_damaged_log(ws: Workspace, commit, llmos, monkeypatch) -> None:
    monkeypatch.chdir(ws.root)
    commit(a="1")
    tag(ws, "one")
    said = ws.oplog.path.read_bytes()
    for damage in (rb"refs/tags/\xone", b"refs/tags/\xff"):
        ws.oplog.path.write_bytes(said.replace(b"refs/tags/one", damage))
        assert llmos("tag").out.startswith("one ") and llmos("log").code == 0
