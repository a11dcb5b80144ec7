"""Backups: all of a workspace comes back on a machine that has nothing of it, whatever was killed on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from llmos_cli.core import runs
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.remote import layout
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, NotFound, UsageError
from llmos_cli.events import Event, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.audit import audit
from llmos_cli.operations.backup import backup
from llmos_cli.operations.branch import branch
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.gc import gc
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore
from llmos_cli.operations.rm import rm
from llmos_cli.operations.tag import tag
from tests.core.conftest import Commit, commit_to
from tests.core.test_remote import every, killed_before

OWN = ("objects", "tmp", "locks", "cache", "identity", "storage", "audit.jsonl", "audit.head")


@pytest.fixture
def far(tmp_path: Path, ws: Workspace) -> Path:
    remotes.add(ws, "origin", str(tmp_path / "far"))
    return tmp_path / "far"


@pytest.fixture
def lived(ws: Workspace, commit: Commit, far: Path) -> Workspace:
    """A workspace with something of everything."""
    first = commit(a="1", b="same")
    tag(ws, "base")
    commit(a="2", b="same")
    branch(ws, "try/one")
    commit(a="unnamed", b="same", move=False)
    rm(ws, [first.id], force=True)
    gc(ws, window="now")  # what undo could bring back stays here, and is in no backup
    commit(a="3", b="other")
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    (ws.root / "my_model.py").write_text("class Mine: ...\n")
    state = ws.runs.list()[0].path / "state"
    state.mkdir()
    (state / "training.pt").write_bytes(b"to be resumed")
    return ws


def files(ws: Workspace) -> dict[str, bytes]:
    """All that a workspace is: not its index, nor what it makes anew wherever it stands."""
    paths = {path.relative_to(ws.root): path for path in ws.root.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in paths.items()
        if not (name.parts[0] == ".llmos" and (name.parts[1] in OWN or "index.sqlite" in name.parts[1]))
    }


def restored(far: Path, name: str = "back", at: str | None = None, key_file: str = "") -> Workspace:
    restore(str(far), far.parent / name, at=at, key_file=key_file)
    return Workspace.find(far.parent / name)


def test_all_of_it_comes_back(lived: Workspace, far: Path) -> None:
    before, recorded = files(lived), lived.oplog.audit.path.read_bytes()  # that it was backed up is told afterwards
    made = backup(lived)
    assert made.checkpoints == 4
    back = restored(far)
    assert files(back) == before
    assert back.oplog.audit.path.read_bytes().startswith(recorded)
    assert [each.what for each in audit(back, limit=1).records] == [f"restore {made.backup} from {far}"]
    assert fsck(back).problems == fsck(lived).problems == ()
    assert [record.id for record in back.runs.list()] == [record.id for record in lived.runs.list()]
    assert back.oplog.undo().changes == lived.oplog.undo().changes
    assert commit_to(back, {"a": "next"})
    assert [path.name for path in far.parent.iterdir() if path.name.startswith(".")] == []


def test_what_a_backup_has_not_it_names(lived: Workspace, far: Path) -> None:
    assert backup(lived).left_out == () and "left out" not in str(backup(lived, dry_run=True).view())
    (lived.root / "data").mkdir()
    (lived.root / "data" / "rows.csv").write_text("1\n")
    for link in (lived.root / "link", lived.configs / "eval.yaml"):
        link.symlink_to("data/rows.csv")
    with lived.begin("train", config={}) as run:
        made = backup(lived)
        assert made.left_out == ("configs/eval.yaml", "data/", "link", f"runs/{run.id}/")
    assert f"configs/eval.yaml, data/, link, runs/{run.id}/" in str(made.view())
    names = {path.name for path in lived.root.iterdir()}
    assert {path.name for path in restored(far).root.iterdir()} == names - {"data", "link"}


PIPELINE = """\
format: 1
pipeline:
  clean: {sh: "scripts/clean.sh raw", inputs: [raw, seed.txt], outputs: [out/clean.txt]}
  base: {verb: train, config: [mine/train.yaml], set: {data.source: rows, data.task: text-classification}, needs: [clean]}
  later: {sh: "cat out/clean.txt > last.txt", inputs: [out/clean.txt], outputs: [last.txt]}
"""


def test_what_a_pipeline_declares_is_in_a_backup(lived: Workspace, far: Path, monkeypatch, llmos) -> None:
    """A folder of inputs, scripts, data, configs of one's own and what was written: where it is restored a run would do the same."""
    monkeypatch.chdir(lived.root)
    for name, text in {
        "raw/a.txt": "one",
        "raw/more/b.txt": "two",
        "scripts/clean.sh": "#!/bin/sh\nmkdir -p out; cat $1/*.txt $1/more/*.txt > out/clean.txt\n",
        "scripts/notes.txt": "of nobody's interest",
        "rows/train.csv": "text,label\na,0\nb,1\n",
        "mine/train.yaml": "train: {max_steps: 1}\n",
        "seed.txt": "1",
        ".hidden/x": "x",
        "data/own.csv": "1",
    }.items():
        (lived.root / name).parent.mkdir(parents=True, exist_ok=True)
        (lived.root / name).write_text(text)
    (lived.root / "scripts" / "clean.sh").chmod(0o755)
    settings = lived.root / "llmos.yaml"
    settings.write_text(settings.read_text().replace("format: 1\n", PIPELINE))
    assert llmos("trust", "--pipeline").code == llmos("trust", "scripts/clean.sh").code == 0
    assert llmos("run", "clean", "-q").code == 0 and (lived.root / "out" / "clean.txt").read_text() == "onetwo"
    assert backup(lived).left_out == (".hidden/", "data/", "scripts/")
    planned = llmos("run", "--dry-run", "--json")
    assert [each["status"] for each in planned.json["stages"]] == ["fresh", "would run", "would run"]
    back = restored(far)
    monkeypatch.chdir(back.root)
    assert llmos("run", "--dry-run").code == 5, "who restored it has trusted nothing there"
    assert llmos("trust", "--pipeline").code == llmos("trust", "scripts/clean.sh").code == 0
    assert llmos("run", "--dry-run", "--json").json == planned.json
    assert not (back.root / "scripts" / "notes.txt").exists() and fsck(back).problems == ()
    settings.write_text(settings.read_text().replace("inputs: [out/clean.txt]", "inputs: [out/clean.txt, .hidden/x]"))
    assert ".hidden/" in backup(lived).left_out, "a tool may act on what is in such a folder: nobody restores one"
    settings.write_text(settings.read_text().replace("outputs: [last.txt]", "outputs: [out]"))
    heard: list[Event] = []
    assert "raw/" in backup(lived, emit=heard.append).left_out
    assert [each.level for each in heard if isinstance(each, Note)] == ["warning"]


def test_a_second_backup_costs_what_changed_and_the_first_stays(lived: Workspace, far: Path) -> None:
    before = files(lived)
    first = backup(lived)
    nothing = backup(lived)
    assert nothing.sent <= 3, "that there was a backup is in the audit log"
    commit_to(lived, {"a": "4", "b": "other"})
    after = files(lived)
    last = backup(lived)
    assert 0 < last.sent < first.sent / 2
    assert files(restored(far, "then", at=first.backup)) == before
    assert files(restored(far)) == after
    with pytest.raises(NotFound, match=r"no backup there begins with 1999") as error:
        restored(far, "never", at="1999")
    assert last.backup in error.value.hint


def test_a_backup_is_no_push(lived: Workspace, far: Path) -> None:
    backup(lived)
    clone(str(far), far.parent / "copy")
    assert Workspace.find(far.parent / "copy").head().checkpoint is None
    push(lived)
    assert restored(far).resolve() == lived.resolve()
    with pytest.raises(NotFound, match="there is no backup in"):
        other = Workspace.create(far.parent / "other")
        remotes.add(other, "origin", str(far.parent / "fresh"))
        commit_to(other, {"a": "1"})
        push(other)
        restored(far.parent / "fresh", "x")


def test_encrypted(lived: Workspace, far: Path) -> None:
    remotes.add(lived, "vault", str(far.parent / "vault"), key_file=str(far.parent / "key"))
    backup(lived, "vault")
    commit_to(lived, {"a": "4"})
    before = files(lived)
    backup(lived, "vault")
    assert files(restored(far.parent / "vault", key_file=str(far.parent / "key"))) == before


def test_it_does_not_come_back_over_something(lived: Workspace, far: Path) -> None:
    backup(lived)
    (far.parent / "full").mkdir()
    (far.parent / "full" / "x").write_text("mine")
    with pytest.raises(UsageError, match="has something in it"):
        restored(far, "full")


@every
def test_a_backup_killed_before_each_of_its_steps(lived: Workspace, far: Path, stride: int) -> None:
    before = files(lived)
    first = backup(lived)
    commit_to(lived, {"a": "4"})
    shutil.copytree(far, kept := far.with_name("kept"))
    step = 0
    while not killed_before(step, lambda: backup(Workspace(lived.root))):
        assert files(restored(far, f"then-{step}", at=first.backup)) == before, step
        shutil.rmtree(far)
        shutil.copytree(kept, far)
        step += 3 * stride
    assert step > 20


def test_a_remote_of_backups_that_is_not_there_is_not_begun_anew(lived: Workspace, far: Path) -> None:
    backup(lived)
    far.rename(far.with_name("unmounted"))
    with pytest.raises(NotFound, match="was sent something"):
        backup(lived)
    assert not far.exists()
    remotes.remove(lived, "origin")
    remotes.add(lived, "origin", str(far))
    backup(lived)


@every
def test_a_restore_killed_before_each_of_its_steps(lived: Workspace, far: Path, stride: int) -> None:
    before = files(lived)
    backup(lived)
    step = 0
    while not killed_before(step, lambda name=f"back-{step}": restored(far, name)):
        whole = far.parent / f"back-{step}"
        if not whole.exists():
            restored(far, whole.name)
        assert files(Workspace.find(whole)) == before, step
        step += 5 * stride
    assert step > 20


Names = Callable[[dict[str, FileEntry]], dict[str, FileEntry]]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "checkpoints/" + "0" * 64 + "/x",
        ".llmos/objects/aa/b",
        ".LLMOS/tmp/x",
        ".llmos/index.sqlite",
        ".git/hooks/x",
        "home/.git/config",
    ],
)
def test_names_that_no_backup_has_are_refused(lived: Workspace, far: Path, name: str) -> None:
    backup(lived)
    (path,) = (far / "backups").iterdir()
    value = json.loads(path.read_text())
    tree = json.loads((far / layout.object_name(value["tree"]["sha256"])).read_text())
    tree[name] = next(iter(tree.values()))
    (far / "tree").write_text(json.dumps(tree))
    entry = hash_file(far / "tree")
    target = far / layout.object_name(entry.sha256)
    target.parent.mkdir(exist_ok=True)
    (far / "tree").rename(target)
    path.write_text(json.dumps({**value, "tree": asdict(entry)}))
    with pytest.raises(Corrupt):
        restored(far)
    assert not (far.parent / "back").exists()


def test_a_run_that_was_alive_then_is_not_missed_afterwards(lived: Workspace, far: Path) -> None:
    """It had ended once, which the ledger says, and went on."""
    with pytest.raises(ValueError), lived.begin("eval", config={}) as first:
        raise ValueError
    assert lived.ledger.find(first.id)
    record = next(each for each in lived.runs.list() if each.id == first.id)
    with runs.resume(lived, record, ["llmos", "eval"]):
        backup(lived)
    back = restored(far)
    assert not (back.root / "runs" / first.id).exists() and fsck(back).problems == ()
