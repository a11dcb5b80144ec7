"""Disks that really end: a full one, a quota, a limit on the size of files. One sentence, exit 1, and nothing half-made.

`test_refusals.py` has the kernel give such an answer to every call there is; here it gives it by itself.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from llmos_cli import app
from llmos_cli.core.refs import HEADS
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.backup import backup
from llmos_cli.operations.clone import clone
from llmos_cli.operations.fsck import fsck
from llmos_cli.operations.init import init
from llmos_cli.operations.push import push
from llmos_cli.operations.tag import tag
from tests.core.killing import commit, state

mounts = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
ROOM = 200_000
"""Bytes that a run may write about itself, and that no model fits in."""
PIECE = 20_000


def begun(root: Path) -> Workspace:
    ws = Workspace.create(root)
    (ws.configs / "train.yaml").write_text("seed: 1\n")
    return ws


def run(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def mounted(place: Path, *how: object) -> Iterator[Path]:
    place.mkdir()
    run("mount", *how, place)
    try:
        yield place
    finally:
        run("umount", "-l", place)


@contextmanager
def in_memory(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        yield disk


@contextmanager
def on_ext4(tmp_path: Path) -> Iterator[Path]:
    with image(tmp_path, 8 << 20, "mkfs.ext4", "-q") as disk:
        yield disk


@contextmanager
def under_a_quota(tmp_path: Path) -> Iterator[Path]:
    """Of a subvolume of btrfs: kernels that have the file system have its quotas, which cannot be said of ext4's and XFS's."""
    with image(tmp_path, 200 << 20, "mkfs.btrfs", "-q") as disk:
        run("btrfs", "quota", "enable", disk)
        run("btrfs", "subvolume", "create", disk / "limited")
        run("btrfs", "qgroup", "limit", "4M", disk / "limited")
        yield disk / "limited"


@contextmanager
def image(tmp_path: Path, size: int, *made_by: str) -> Iterator[Path]:
    if shutil.which(made_by[0]) is None:
        pytest.skip(f"needs the tool {made_by[0]}")
    with open(tmp_path / "image", "wb") as file:
        file.truncate(size)
    run(*made_by, tmp_path / "image")
    with mounted(tmp_path / "disk", "-o", "loop", tmp_path / "image") as disk:
        yield disk


def fill(disk: Path) -> Path:
    """Ballast that leaves hardly any room."""
    ballast = disk / "ballast"
    ballast.mkdir()
    with pytest.raises(OSError, match=r"No space|quota"):
        for number in range(10_000):
            with (ballast / f"{number:05d}").open("wb", buffering=0) as file:
                file.write(os.urandom(PIECE))
                if number % 20 == 0:
                    os.fsync(file.fileno())
    for piece in sorted(ballast.iterdir())[: 1 + ROOM // PIECE]:
        piece.unlink()
    os.sync()
    return ballast


LIMITS: dict[str, tuple[Callable[[Path], object], str]] = {
    "tmpfs": (in_memory, "the disk is full"),
    "ext4": (on_ext4, "the disk is full"),
    "quota": (under_a_quota, "the disk quota is used up"),
}


class TestADiskThatEnds:
    pytestmark = mounts

    @pytest.mark.parametrize("kind", LIMITS)
    def test_what_does_not_fit_never_happened(self, kind: str, tmp_path: Path) -> None:
        made, says = LIMITS[kind]
        big = os.urandom(ROOM).hex()
        other = begun(tmp_path / "other")
        remotes.add(other, "origin", str(tmp_path / "far"))
        commit(other, (), model=big)
        push(other)
        with made(tmp_path) as disk:  # type: ignore[attr-defined]
            ws = begun(disk / "w")
            first = commit(ws, (), model="small")
            remotes.add(ws, "origin", str(disk / "far"))
            push(ws)
            ballast = fill(disk)
            before, there = state(ws.root), sorted(disk.iterdir())
            acts: tuple[Callable[[], object], ...] = (
                lambda: commit(ws, (first,), model=big, time="2"),
                lambda: clone(str(tmp_path / "far"), disk / "copy"),
            )
            for act in acts:
                with pytest.raises(LlmosError, match=f"{says}|this disk has") as told:
                    act()
                assert told.value.exit_code == 1 and told.value.hint
                next(ballast.iterdir()).unlink()  # where writing is copying, even taking a lock needs a little room
                os.sync()
                assert state(ws.root) == before
                assert fsck(Workspace.find(ws.root)).problems == ()
                assert not any((ws.dot / "tmp").iterdir())
            assert set(disk.iterdir()) - set(there) == {disk / ".copy.cloning"}
            shutil.rmtree(ballast)
            os.sync()
            for act in acts:
                act()
            assert fsck(Workspace.find(ws.root)).problems == ()
            assert fsck(Workspace.find(disk / "copy")).problems == ()
            assert sorted(disk.iterdir()) == sorted([disk / "copy", *(path for path in there if path != ballast)])


class TestABeginningThatDoesNotFit:
    pytestmark = mounts

    @pytest.mark.parametrize("room", range(4096, 65_536, 8192))
    def test_it_leaves_nothing_of_its_own(self, room: int, tmp_path: Path) -> None:
        """The configs of a template that a full disk cut off would be taken for the user's."""
        with in_memory(tmp_path) as disk:
            (disk / "mine" / "configs").mkdir(parents=True)
            (disk / "mine" / "configs" / "train.yaml").write_text("seed: 1\n")
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(free - room))
            for place in ("new", "mine"):
                before = sorted(disk.rglob("*"))
                try:
                    init(disk / place, "causal-lm")
                except LlmosError as error:
                    assert "the disk is full" in error.message and sorted(disk.rglob("*")) == before
                else:
                    assert fsck(Workspace.find(disk / place)).problems == ()

    def test_it_takes_nothing_that_came_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that somebody puts there, and a workspace that somebody else begins."""
        made, root = Workspace.create, tmp_path / "w"

        def full(place: Path) -> Workspace:
            (place / "configs" / "mine.yaml").write_text("seed: 1\n")
            (place / "notes.txt").write_text("mine")
            raise LlmosError("the disk is full", hint="free some space")

        monkeypatch.setattr(Workspace, "create", full)
        with pytest.raises(LlmosError):
            init(root, "causal-lm")
        files = [path for path in root.rglob("*") if path.is_file()]
        assert sorted(path.name for path in files) == ["mine.yaml", "notes.txt"]

        def begun_elsewhere(place: Path) -> Workspace:
            made(place)
            return made(place)

        monkeypatch.setattr(Workspace, "create", begun_elsewhere)
        with pytest.raises(LlmosError):
            init(root, "causal-lm")
        assert fsck(Workspace.find(root)).problems == () and (root / "configs" / "train.yaml").exists()

    def test_an_index_that_cannot_be_made_anew_is_made_in_memory(self, tmp_path: Path) -> None:
        with in_memory(tmp_path) as disk:
            ws = begun(disk / "w")
            commit(ws, (), model="small")
            ws.index.entries()
            events = next((ws.root / "runs").glob("*/events.jsonl"))
            events.write_text(events.read_text().replace('"saved"', '"saver"'))
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(free))
            assert next(each.where for each in fsck(Workspace.find(ws.root)).problems).endswith("events.jsonl")


class TestARemoteThatEnds:
    """What is here stays as it was, what is there can still be cloned, and the next push finishes it."""

    pytestmark = mounts

    @pytest.mark.parametrize("full", [True, False], ids=["full", "read-only"])
    @pytest.mark.parametrize("act", [push, backup])
    def test_it_keeps_what_it_had(self, act: Callable[[Workspace], object], full: bool, tmp_path: Path) -> None:
        ws = begun(tmp_path / "w")
        first = commit(ws, (), model="small")
        with in_memory(tmp_path) as disk:
            remotes.add(ws, "origin", str(disk / "far"))
            push(ws)
            commit(ws, (first,), model=os.urandom(10 * PIECE).hex(), time="2")
            ballast = fill(disk)
            if not full:
                run("mount", "-o", "remount,ro", disk)
            before = state(ws.root)
            with pytest.raises(LlmosError, match="the disk is full" if full else "read-only") as told:
                act(ws)
            assert told.value.exit_code == 1 and "a remote's folder" in told.value.hint
            assert state(ws.root) == before
            assert clone(str(disk / "far"), tmp_path / "copy").checkpoint == first
            if not full:
                run("mount", "-o", "remount,rw", disk)
            shutil.rmtree(ballast)
            act(ws)
            assert fsck(Workspace.find(ws.root)).problems == ()


@pytest.mark.parametrize("limit", [0, 100, 500, 2_000, 20_000, 60_000])
def test_a_limit_on_the_size_of_files(tmp_path: Path, limit: int) -> None:
    """At the first file that is too large, whichever that is: the run's own, the weights, a manifest, the index, the log, of which 500
    bytes are one operation and a half."""
    ws = begun(tmp_path / "w")
    first = commit(ws, (), model="small")
    before = state(ws.root)
    done = [
        limited(limit, lambda: commit(Workspace.find(ws.root), (first,), model="x" * 50_000, time="2")),
        limited(limit, lambda: tag(Workspace.find(ws.root), "x")),
    ]
    assert any(done) is (limit >= 2_000) and all(done) is (limit >= 60_000)
    new = Workspace.find(ws.root)
    assert fsck(new).problems == ()
    assert not any((new.dot / "tmp").iterdir())
    if not done[
        0
    ]:  # where there was no room for the audit's record alone, the tag is there, and the record waits for the next
        assert replace(state(ws.root), refs={HEADS + "main": before.refs[HEADS + "main"]}, operations=[]) == replace(
            before, operations=[]
        )
    assert commit(new, (first,), move=False, model="x" * 50_000, time="3")


def test_what_was_repaired_before_there_was_no_room_is_told(tmp_path: Path) -> None:
    ws = begun(tmp_path / "w")
    first = commit(ws, (), large="x" * 50_000, first="small", model="x" * 60_000)
    remotes.add(ws, "origin", str(tmp_path / "far"))
    push(ws)
    for name in ("first", "large"):
        (ws.checkpoints / first / name).unlink()
    shutil.rmtree(ws.objects.directory)

    def repair() -> None:
        os.chdir(ws.root)
        with (tmp_path / "said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
            code = app.run(["fsck", "--repair"])
        os._exit(code)

    assert not limited(20_000, repair)
    where = f"checkpoints/{first[:12]}/first"
    said = (tmp_path / "said").read_text()
    assert f"repaired {where} from origin\nerror: " in said and "larger than this process may write" in said
    assert f"fsck --repair: {where}" in ws.oplog.audit.path.read_text()
    assert fsck(ws, repair=True).problems == ()


def test_what_cannot_be_recorded_moves_nothing_there(tmp_path: Path) -> None:
    ws = begun(tmp_path / "w")
    commit(ws, (), model="small")
    remotes.add(ws, "origin", str(tmp_path / "far"))
    for each in range(20):
        tag(ws, f"t{each}")
    log = ws.oplog.audit.path
    assert not limited(log.stat().st_size + 10, lambda: push(Workspace.find(ws.root)))
    assert (tmp_path / "far" / "objects").is_dir() and not (tmp_path / "far" / "refs").exists()
    push(ws)
    assert log.read_text().count('"push heads/main to origin"') == 1


def limited(limit: int, act: Callable[[], object]) -> bool:
    """Whether it was done by a process that may write no larger file, as `ulimit -f` says it; what was not was said rightly."""
    pid = os.fork()
    if not pid:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            act()
        except LlmosError as error:
            right = "the file would be larger than this process may write" in error.message and error.exit_code == 1
            right = right and "`ulimit -f` says" in error.hint
            os._exit(1 if right else 2)
        except BaseException:  # noqa: BLE001 - a child that must never return
            traceback.print_exc()
            os._exit(2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0
