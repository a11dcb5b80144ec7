"""A workspace that several users work in: whatever llmos makes has the mode that the umask says, or is the group's."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import io
import os
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmos_cli import app
from llmos_cli.core.locks import lock
from llmos_cli.core.manifest import Made
from llmos_cli.core.processes import Process, this_process
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LockTimeout
from llmos_cli.session import session
from tests.core.killing import commit

ALICE, BOB, MALLORY = 71001, 71002, 71003
GROUP = next((each for each in grp.getgrall() if each.gr_gid), grp.getgrall()[0])
users = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may reach, which pytest's own are not."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        Path(folder).chmod(0o777)
        yield Path(folder).resolve()


def as_user(user: int, act: Callable[[], object], *, umask: int = 0o077, member: bool = True) -> None:
    """In a child that is this user to the kernel, alone in a group of its own name but for the common one."""
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([GROUP.gr_gid] if member else [])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os.umask(umask)
            act()
        except BaseException:  # noqa: BLE001 - a child that must never return
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def llmos(*words: str, code: int = 0) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert app.run(words) == code, said.getvalue()
    return said.getvalue()


def commit_as_command(**files: str) -> None:
    """With the umask that a command has."""
    with session() as s:
        ws = s.workspace
        head = ws.head().checkpoint
        commit(ws, (head,) if head else (), **files)


def modes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}


def unfit(root: Path) -> list[str]:
    """What is not the group's to read and, but for what nobody may write, to change."""
    found = []
    for path in [root, *root.rglob("*")]:
        status = path.stat()
        mode = stat.S_IMODE(status.st_mode)
        wanted = 0o2070 if path.is_dir() else 0o060 if mode & stat.S_IWUSR else 0o040
        if status.st_gid != GROUP.gr_gid or mode & wanted != wanted:
            found.append(f"{path.relative_to(root)}: {mode:o}, group {status.st_gid}")
    return found


def begin() -> None:
    llmos("init", "w", "--shared", GROUP.gr_name)
    os.chdir("w")
    commit_as_command(same="s" * 5000, other="Alice's")
    llmos("tag", "hers")


def change() -> None:
    """What Bob does."""
    llmos("status")
    commit_as_command(same="s" * 5000, other="Bob's")
    for words in (("tag", "his"), ("tag", "-f", "hers"), ("undo",), ("branch", "try", "hers"), ("checkout", "try")):
        llmos(*words)
    commit_as_command(mine="Bob's")
    llmos("checkout", "main")
    llmos("branch", "-d", "try")
    llmos("gc", "--expire", "now")


def change_back() -> None:
    """What Alice does then."""
    for words in (("undo",), ("tag", "-d", "his"), ("rm", "--force", "hers")):
        llmos(*words)
    commit_as_command(other="hers again")
    llmos("gc", "--expire", "now")
    look()


def lose_objects(root: Path) -> None:
    """What a tool that breaks links, or somebody who needed room, leaves: every file shares its bytes with nothing."""
    for folder in (root / ".llmos/objects").iterdir():
        shutil.rmtree(folder)


def protected_hardlinks() -> bool:
    file = Path("/proc/sys/fs/protected_hardlinks")
    return file.exists() and file.read_text().strip() == "1" and Workspace.find().storage == "hardlink"


def look() -> None:
    for words in (("status",), ("log",), ("show",), ("audit", "--verify"), ("init", "--shared", "no-such-group", "x")):
        llmos(*words, code=4 if "init" in words else 0)
    assert "everything is as it was saved" in llmos("fsck")


@pytest.fixture(scope="module")
def imported() -> None:
    """All of it once, by whoever runs the tests: others may not be let into the folder where Python is."""
    before, here = os.umask(0o022), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for act in (begin, change, change_back):
                act()
            lose_objects(Path())
            Path(".llmos/refs/heads/main").unlink()
            llmos("fsck", "--repair")
            os.kill(os.getpid(), 0)
        finally:
            os.umask(before)
            os.chdir(here)


@pytest.fixture
def shared(place: Path, imported: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace that Alice, whose umask lets nobody in, has given to the group; it has one checkpoint of hers."""
    monkeypatch.chdir(place)
    (place / "home").mkdir()
    (place / "home").chmod(0o777)
    monkeypatch.setenv("LLMOS_CACHE_HOME", str(place / "home"))
    as_user(ALICE, begin)
    monkeypatch.chdir(place / "w")
    return place / "w"


class TestOfAGroup:
    pytestmark = users

    def test_two_users_change_what_the_other_made(self, shared: Path) -> None:
        as_user(BOB, change)
        assert unfit(shared) == []
        as_user(ALICE, change_back)
        assert unfit(shared) == []
        as_user(BOB, look)
        assert {path.stat().st_uid for path in shared.rglob("*")} == {ALICE, BOB}

    def test_what_may_not_be_linked_is_stored_again_and_said(self, shared: Path) -> None:
        protected = protected_hardlinks()

        def bob() -> None:
            commit_as_command(same="s" * 5000, other="Bob's")
            ws = Workspace.find()
            log = max((ws.root / "runs").glob("*/log.txt"), key=lambda path: path.stat().st_mtime_ns)
            assert (
                "5.0 kB are stored once more: another user of this workspace has them" in log.read_text()
            ) is protected
            assert (ws.checkpoint().path / "folder" / "same").stat().st_uid == (BOB if protected else ALICE)
            assert "everything is as it was saved" in llmos("fsck")

        as_user(BOB, bob)

    def test_each_repairs_what_the_system_lets_them_link_and_is_told_whose_the_rest_is(self, shared: Path) -> None:
        if not protected_hardlinks():
            pytest.skip("this system links anybody's files")

        def bob() -> None:
            commit_as_command(same="s" * 5000, mine="Bob's")
            lose_objects(shared)
            (shared / ".llmos/refs/tags/hers").unlink()
            assert f"--repair links them, but for 7 B, which it links for {ALICE} or root" in llmos("fsck", code=5)
            said = llmos("fsck", "--repair")
            assert "repaired refs/tags/hers from the log of operations" in said
            assert "repaired .llmos/objects from the files of 2 checkpoints" in said
            left = "7 B of 1 checkpoint share nothing with .llmos/objects: what is equal would be stored again, and `du` takes it for shared; "
            assert left + f"--repair by {ALICE} or root links them" in said
            assert "everything is as it was saved" in said
            again = llmos("fsck", "--repair")
            assert "repaired" not in again and left in again

        def alice() -> None:
            assert "--repair links them" in llmos("fsck")
            assert "repaired .llmos/objects from the files of 1 checkpoint" in llmos("fsck", "--repair")
            assert "share nothing" not in llmos("fsck", "--repair")

        as_user(BOB, bob)
        as_user(ALICE, alice)
        assert unfit(shared) == []

    def test_who_is_not_in_the_group_may_look_where_the_mode_lets_them(self, shared: Path) -> None:
        subprocess.run(["chmod", "-R", "o+rX", shared], check=True)

        def stranger() -> None:
            look()
            said = llmos("tag", "mine", code=1)
            assert said.startswith(f"error: cannot write {shared / '.llmos'}: permission denied\nhint: ")

        before = modes(shared)
        as_user(MALLORY, stranger, member=False)
        assert modes(shared) == before

    def test_a_group_that_is_none(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(place)
        said = llmos("init", "w", "--shared", "no-such-group", code=4)
        assert said.startswith("error: there is no group no-such-group on this system\nhint: ")
        assert not (place / "w").exists()

    def test_a_lock_is_not_taken_from_a_process_that_the_system_hides(self, place: Path) -> None:
        """/proc may show everybody their own processes alone (hidepid): then another's looks dead and is not."""
        libc = ctypes.CDLL(None, use_errno=True)
        holder = this_process()
        pid = os.fork()
        if not pid:
            try:
                assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
                subprocess.run(["mount", "--make-rprivate", "/"], check=True)
                subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)

                def look() -> None:
                    assert not Path(f"/proc/{holder.pid}/stat").exists()
                    assert holder.alive()
                    assert not Process(2**22 - 7, 1.0, holder.host).alive()
                    with pytest.raises(LockTimeout), lock(place / "refs", wait=0.2):
                        pass

                with lock(place / "refs"):
                    (place / "refs").chmod(0o666)
                    as_user(BOB, look, member=False)
            except BaseException:  # noqa: BLE001 - a child that must never return
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_files_and_folders_are_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        ws = Workspace.create(tmp_path / "w")
        made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
        for number in range(2):
            with ws.begin("train", config={}) as run, ws.stage() as staged:
                for name, mode in (("theirs", 0o600), ("open", 0o666), ("own", 0o644)):
                    (staged / name).write_text(name + str(number) * (name == "own"))
                    (staged / name).chmod(mode)
                run.commit(staged, made)
        ws.index.entries()
    finally:
        os.umask(before)
    read_only = {f"checkpoints/{name}" for name in modes(ws.checkpoints)} | {
        f".llmos/objects/{n}" for n in modes(ws.dot / "objects")
    }
    for name, mode in modes(ws.root).items():
        path = ws.root / name
        wanted = 0o777 if path.is_dir() else 0o444 if name in read_only else 0o666
        assert mode == wanted & ~umask, name
    shutil.rmtree(ws.root)
