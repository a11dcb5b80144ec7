"""fsck --remote: whatever decays at a remote is told, with whom it hurts, and comes back from a workspace that still has it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import hash_file
from llmos_cli.core.remote import layout
from llmos_cli.core.remote.store import whole
from llmos_cli.core.workspace import Workspace
from llmos_cli.data import snapshots
from llmos_cli.data.rows import Rows
from llmos_cli.errors import Corrupt, LlmosError, Untrusted
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.fsck_remote import FsckRemoteResult, fsck_remote
from llmos_cli.operations.integrity.remote_files import shown
from llmos_cli.operations.pipeline.cache import text_of
from llmos_cli.operations.pipeline.memory import Memory, Result
from llmos_cli.operations.push import push
from llmos_cli.operations.restore import restore
from llmos_cli.operations.rm import rm
from llmos_cli.operations.seal import seal
from llmos_cli.operations.tag import tag
from llmos_cli.transports.local import LocalStore
from tests.core.conftest import commit_to
from tests.core.killing import vouch

pytest.importorskip("cryptography", reason="needs the tool cryptography")

NOBODY_MISSES = {"runs", "signatures", "snapshots", "sealed", "results", "backups"}
"""What nothing at a remote names: that it was there, nothing says. The next push sends most of it again."""


def lived(root: Path, *, encrypted: bool) -> Workspace:
    """A workspace with a remote that has two files or more of every kind."""
    ws = Workspace.create(root / "w")
    remotes.add(ws, "origin", str(root / "far"), key_file=str(root / "key") if encrypted else "")
    removed, lost = (commit_to(ws, {"a": f"{each} checkpoint"}).id for each in ("removed", "lost"))
    first = commit_to(ws, {"a": "first", "b": "the same"}).id
    shutil.rmtree(ws.checkpoints / lost)
    fsck(ws, accept_loss=[lost])
    push(ws)  # main moves twice
    secret = commit_to(ws, {"a": "secret", "b": "secret too"}).id
    kept = snapshots.kept({"train": Rows({"text": ["a row"]})}, source="r", asked="", store=ws.snapshots.store)
    ws.snapshots.write(kept)
    made = Made("train", (secret,), {}, {"splits": kept.fingerprint}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("train", config={}, parents=(secret,), onto=ws.onto()) as run, ws.stage() as staged:
        (staged / "a").write_text("with data")
        (staged / "b").write_text("the same")
        run.commit(staged, made)
    for each, name in ((first, "base"), (secret, "secret"), (removed, "removed")):
        tag(ws, name, each)
    for each in (first, secret):
        vouch(ws, each, "k")
    seal(ws, "secret", ask=lambda _: "5" * 64)
    rm(ws, ["removed"], force=True)
    push(ws, everything=True, data=True)
    stage(ws)
    backup(ws)
    return ws


def stage(ws: Workspace) -> None:
    """What `llmos run --cache-dir` keeps there of a stage."""
    output = Memory(ws).contents(hashlib.sha256(b"counted").hexdigest())
    output.parent.mkdir(parents=True)
    output.write_bytes(b"counted")
    result = Result("7" * 64, "count", {}, outputs={"out.txt": output.name}, seconds=0.25)
    Memory(ws).keep(result)
    there = remotes.opened(ws, remotes.named(ws, None))
    assert there.is_begun
    there.store.put(layout.object_name(output.name), whole(b"counted"), lambda _: None)
    there.store.put(layout.result_name(result.key), whole(text_of(result)), lambda _: None)


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def used(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return lived(tmp_path_factory.mktemp(request.param), encrypted=request.param == "encrypted")


@pytest.fixture
def plain(tmp_path: Path) -> Workspace:
    return lived(tmp_path, encrypted=False)


def far(ws: Workspace) -> Path:
    return ws.root.parent / "far"


def files(ws: Workspace) -> list[Path]:
    return [path for path in sorted(far(ws).rglob("*")) if path.is_file() and "uploads" not in path.parts]


def checked(ws: Workspace, *, repair: bool = False) -> FsckRemoteResult:
    return fsck_remote(Workspace.find(ws.root), "origin", repair=repair)


@contextmanager
def put_back(folder: Path) -> Iterator[None]:
    shutil.copytree(folder, kept := folder.with_name("kept"))
    try:
        yield
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def add(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


HARM: dict[str, Callable[[Path], None]] = {"flipped": flip, "gone": Path.unlink, "longer": add}


def test_it_has_every_kind_of_file(plain: Workspace) -> None:
    kinds = {path.relative_to(far(plain)).parts[0] for path in files(plain)}
    assert kinds == {
        *(layout.OBJECTS, layout.CHECKPOINTS, layout.LINEAGE, layout.SEALED, layout.LOST, layout.SIGNATURES),
        *(layout.RUNS, layout.SNAPSHOTS, layout.RESULTS, layout.REFS, layout.BACKUPS, layout.FORMAT_FILE),
    }


def test_a_healthy_one_is_read_once(used: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    chunks, small = LocalStore.chunks, LocalStore.read
    monkeypatch.setattr(LocalStore, "chunks", lambda self, *told: (read.append(told[0]), chunks(self, *told))[1])
    monkeypatch.setattr(LocalStore, "read", lambda self, *told: (read.append(told[0]), small(self, *told))[1])
    found = checked(used)
    assert found.problems == () and found.repaired == ()
    names = [str(path.relative_to(far(used))) for path in files(used)]
    assert sorted(set(read)) == names
    assert [name for name in names if read.count(name) > 1] == [layout.FORMAT_FILE]
    assert found.files == len(names) - 1


def harmable(ws: Workspace) -> dict[str, list[Path]]:
    """Kind -> its files, of objects some. Without the format file of an encrypted remote nothing there can be told."""
    found: dict[str, list[Path]] = {}
    for path in files(ws):
        found.setdefault(path.relative_to(far(ws)).parts[0], []).append(path)
    if is_encrypted(ws):
        del found[layout.FORMAT_FILE]
    found[layout.OBJECTS] = [object_of(ws, sha256) for sha256 in some(ws)]
    return found


def some(ws: Workspace) -> list[str]:
    """Of a checkpoint, of a sealed one, of a run, rows of data, what a stage wrote."""
    sealed = ws.sealed.seal(ws.resolve("secret"))
    run = sorted(ws.runs.list(), key=lambda record: record.id)[0]
    (snapshot,) = ws.snapshots.all()
    return [
        ws.manifest(ws.resolve()).tree["a"].sha256,
        sealed.tree["a"].sha256,
        hash_file(run.path / "events.jsonl").sha256,
        *snapshot.pieces,
        hashlib.sha256(b"counted").hexdigest(),
    ]


def object_of(ws: Workspace, sha256: str) -> Path:
    there = remotes.opened(ws, remotes.named(ws, None))
    there.must_be_begun()
    return far(ws) / there.stored(layout.object_name(sha256))


def is_encrypted(ws: Workspace) -> bool:
    return (ws.root.parent / "key").exists()


@pytest.mark.parametrize("harm", HARM)
def test_any_harm_to_any_file_is_told(used: Workspace, harm: str) -> None:
    silent = set()
    for kind, paths in harmable(used).items():
        for path in paths:
            whole = path.read_bytes()
            HARM[harm](path)
            if len(checked(used).problems) != 1:
                silent.add(kind)
            path.write_bytes(whole)
    assert silent <= (NOBODY_MISSES if harm == "gone" else set())
    assert checked(used).problems == ()


@pytest.mark.parametrize("harm", HARM)
def test_what_is_here_comes_back(used: Workspace, harm: str) -> None:
    """Of a backup nobody has another copy; all else is whole again."""
    for kind, paths in harmable(used).items():
        with put_back(far(used)):
            for path in paths:
                HARM[harm](path)
            told = checked(used).problems
            mended = checked(used, repair=True)
            assert mended.problems == checked(used).problems
            assert mended.problems == (told if kind == layout.BACKUPS else ()), kind
            assert bool(mended.repaired) is (mended.problems != told), kind


def test_whom_it_hurts(plain: Workspace) -> None:
    """A file of two checkpoints, one of their ancestor alone, and what says that this is there."""
    first, last = plain.resolve("base"), plain.resolve()
    (made,) = backups(plain)
    flip(object_of(plain, plain.manifest(last).tree["b"].sha256))
    object_of(plain, plain.manifest(first).tree["a"].sha256).unlink()
    path = far(plain) / layout.CHECKPOINTS / f"{first}.json"
    add(path)
    (seen, *others) = [each for each in checked(plain).problems if each.where.startswith("checkpoints/")]
    assert others == [] and (seen.where, seen.checkpoint) == (f"checkpoints/{first[:12]}.json", first)
    assert seen.hurts == ("origin/main", "origin/base", "origin/secret", f"backup {made}")
    path.write_bytes(path.read_bytes()[:-1])
    shared, own = sorted(checked(plain).problems, key=lambda each: each.what)
    assert "has other bytes than its name says: " in shared.what
    assert f"{first[:12]}/b" in shared.what and f"{last[:12]}/b" in shared.what
    assert own.what == f"is missing: {first[:12]}/a" and own.checkpoint == first
    for each in (shared, own):
        assert each.hurts == ("origin/main", "origin/base", "origin/secret", f"backup {made}")
    assert {each.where for each in checked(plain, repair=True).repaired} == {shared.where, own.where}
    assert clone(str(far(plain)), plain.root.parent / "copy").checkpoint == last


def backups(ws: Workspace) -> list[str]:
    return [path.stem for path in (far(ws) / layout.BACKUPS).iterdir()]


def test_what_is_nowhere_else_is_told_after_all(plain: Workspace, llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.root)
    last = plain.resolve()
    name = plain.manifest(last).tree["a"].sha256
    flip(object_of(plain, name))
    for path in (plain.checkpoints / last / "a", plain.objects.path(name)):
        path.chmod(0o644)
        path.write_text("bad data!")  # here too, and as long
    told = llmos("fsck", "--remote", "origin", "--repair")
    assert (
        told.code == 5
        and f"error: 1 thing is damaged on origin; hurt: backup {backups(plain)[0]}, origin/main" in told.err
    )
    assert f"object {name[:12]}" in told.out and "repaired" not in told.out and "in another workspace" in told.err
    assert object_of(plain, name).read_bytes() != b"bad data!"
    found = json.loads(llmos("fsck", "--remote", "origin", "--json").out.splitlines()[0])
    assert [each["checkpoint"] for each in found["problems"]] == [last]


def test_a_clone_sends_what_is_lost_elsewhere(plain: Workspace) -> None:
    clone(str(far(plain)), plain.root.parent / "copy")
    last = plain.resolve()
    shutil.rmtree(plain.checkpoints / last)
    plain.objects.path(sha256 := checked_tree(plain, last)).unlink()
    path = far(plain) / layout.CHECKPOINTS / f"{last}.json"
    path.unlink()
    object_of(plain, sha256).unlink()
    (gone, *_) = checked(plain, repair=True).problems
    assert gone.what == "is missing, and origin/main names it" and gone.lacks == last
    other = Workspace.find(plain.root.parent / "copy")
    assert fsck_remote(other, "origin", repair=True).problems == ()
    assert path.read_bytes() == (other.checkpoints / last / "manifest.json").read_bytes()


def checked_tree(ws: Workspace, checkpoint: str) -> str:
    """Of its file `a`, as the remote says."""
    there = remotes.opened(ws, remotes.named(ws, None))
    assert there.is_begun
    return there.manifest(checkpoint).tree["a"].sha256


def test_a_branch_is_put_forward_only(plain: Workspace) -> None:
    """The last file of its row is gone; another who pushed meanwhile, not knowing of it, is not overruled."""
    row = far(plain) / "refs" / "heads%2fmain"
    first, last = sorted(row.iterdir())
    last.unlink()
    (told,) = checked(plain).problems
    assert told.where == "refs/heads%2fmain/00000002" and told.hurts == ("origin/main",)
    with put_back(far(plain)):
        assert checked(plain, repair=True).problems == () and last.exists()
    clone(str(far(plain)), plain.root.parent / "copy")
    other = Workspace.find(plain.root.parent / "copy")
    commit_to(other, {"a": "theirs"})
    push(other)
    (still,) = checked(plain, repair=True).problems
    assert still.where == "refs/heads%2fmain/00000003" and sorted(row.iterdir()) == [first, last]
    assert first.exists()


def test_a_disk_that_cannot_read_a_file_is_told(plain: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = layout.object_name(plain.manifest(plain.resolve()).tree["a"].sha256)
    chunks = LocalStore.chunks

    def failing(self: LocalStore, name: str, start: int) -> Iterator[bytes]:
        if name == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return chunks(self, name, start)

    monkeypatch.setattr(LocalStore, "chunks", failing)
    (told,) = checked(plain).problems
    assert told.what.startswith("cannot be read: Input/output error: ")


def test_a_disk_that_goes_away_is_no_damage(plain: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = LocalStore.chunks

    def pulled(self: LocalStore, name: str, start: int) -> Iterator[bytes]:
        if far(plain).exists():
            far(plain).rename(far(plain).with_name("elsewhere"))
        return chunks(self, name, start)

    monkeypatch.setattr(LocalStore, "chunks", pulled)
    with pytest.raises(LlmosError, match="cannot be read any more") as told:
        checked(plain)
    assert told.value.exit_code == 1


def test_a_file_is_told_by_its_own_name(used: Workspace) -> None:
    """Where names are hidden too."""
    there = remotes.opened(used, remotes.named(used, None))
    there.must_be_begun()
    first = used.resolve("base")
    run = next(record.id for record in used.runs.list() if first in record.checkpoints)
    names = [layout.checkpoint_name(first), layout.run_name(run), layout.ref_name("refs/heads/main", 2)]
    with put_back(far(used)):
        for name in names:
            add(far(used) / there.stored(name))
        found = {each.where: each.hurts for each in checked(used).problems}
    assert set(found) == {f"checkpoints/{first[:12]}.json", *names[1:]} and found[names[2]] == ("origin/main",)


def test_a_move_that_nobody_counted_to_is_one_file_to_take_away(used: Workspace) -> None:
    """And not ninety-nine million that are missing before it."""
    there = remotes.opened(used, remotes.named(used, None))
    there.must_be_begun()
    name = layout.ref_name("refs/heads/main", 99_999_999)
    text = layout.text({"ref": "refs/heads/main", "value": used.resolve("base")})
    with put_back(far(used)):
        there.store.put(name, whole(text), lambda _: None)
        (found,) = checked(used).problems
        assert found.where == shown(there.stored(name)) and found.what == layout.UNCOUNTED
        with pytest.raises(Corrupt, match="llmos, which counts by one: take that file away there"):
            push(used, force=True)
        assert checked(used, repair=True).problems == (found,)


def test_what_makes_no_sense_together(plain: Workspace, llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plain.root)
    flip(files(plain)[-1])
    for words in (("--accept-loss", "HEAD"), ("--key-file", "key")):
        ran = llmos("fsck", "--remote", "origin", *words)
        assert ran.code == 2 and f"{words[0]} is of this workspace, and --remote checks what origin has" in ran.err
    assert llmos("fsck", "--remote", "nowhere").code == 4
    (plain.dot / "identity").unlink()
    monkeypatch.setenv("LLMOS_READ_ONLY", "1")
    assert llmos("fsck", "--remote", "origin").code == 5
    assert llmos("fsck", "--remote", "origin", "--repair").code == 2
    assert not (plain.dot / "identity").exists()


def test_the_keys_of_an_encrypted_one(tmp_path: Path) -> None:
    ws = lived(tmp_path, encrypted=True)
    key = (tmp_path / "key").read_text()
    (tmp_path / "key").write_text("0" * 64)
    with pytest.raises(Untrusted, match="the key is not that of"):
        checked(ws)
    (tmp_path / "key").unlink()
    with pytest.raises(Untrusted, match="cannot be read from"):
        checked(ws)
    (tmp_path / "key").write_text(key)
    (far(ws) / layout.FORMAT_FILE).unlink()
    with pytest.raises(Corrupt, match=r"llmos\.json is missing in .*, which holds all else") as told:
        checked(ws, repair=True)
    assert "put it back from a copy" in told.value.hint


def test_what_was_sent_before_there_was_a_hash_is_sound(plain: Workspace) -> None:
    path = far(plain) / "refs" / "heads%2fmain" / "00000001"
    said = json.loads(path.read_bytes())
    del said["hash"]
    path.write_text(json.dumps({"ref": said["ref"], "value": said["value"]}) + "\n")
    assert checked(plain).problems == ()
    add(path)
    assert [each.what for each in checked(plain).problems] == ["was altered: it is not as it was written"]


def test_a_line_that_was_edited_is_not_believed(plain: Workspace) -> None:
    path = next((far(plain) / "runs").iterdir())
    path.write_bytes(path.read_bytes().replace(b'"log.txt"', b'"lag.txt"'))
    with pytest.raises(Corrupt, match="it was altered: it is not what its hash is of"):
        clone(str(far(plain)), plain.root.parent / "copy")
    assert checked(plain, repair=True).repaired[0].where == f"runs/{path.name}"
    clone(str(far(plain)), plain.root.parent / "copy")


def test_a_restore_that_finds_damage_leaves_what_it_can_go_on_with(plain: Workspace, tmp_path: Path) -> None:
    """Nothing where nothing came; the hint says how it goes on."""
    path = object_of(plain, plain.manifest(plain.resolve()).tree["a"].sha256)
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(Corrupt, match="is missing") as told:
        restore(str(far(plain)), tmp_path / "back")
    assert "`llmos fsck --remote NAME --repair`" in told.value.hint and ".back.restoring" not in told.value.hint
    assert not (tmp_path / ".back.restoring").exists()
    path.write_bytes(whole)
    flip(path)
    with pytest.raises(Corrupt, match="is not what its name says") as told:
        restore(str(far(plain)), tmp_path / "back")
    assert "`llmos fsck --remote NAME --repair`" in told.value.hint
    assert "the same `llmos restore` goes on" in told.value.hint and (tmp_path / ".back.restoring").exists()
    assert checked(plain, repair=True).problems == ()
    restore(str(far(plain)), tmp_path / "back")
    assert not (tmp_path / ".back.restoring").exists() and fsck(Workspace.find(tmp_path / "back")).problems == ()
