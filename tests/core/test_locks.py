"""Locks: one at a time, waiting politely, freed by death."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from llmos_cli.core.locks import lock, patience
from llmos_cli.errors import LockTimeout, UsageError
from llmos_cli.events import Event, Note


def hold(path: Path, *, child: bool = False) -> tuple[int, int]:
    """A process that holds the lock until it is killed; with `child`, its own child has the file open too. (pid, child)."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with lock(path):
            grandchild = os.fork() if child else 0
            if child and not grandchild:
                time.sleep(60)
                os._exit(0)
            os.write(write, f"{grandchild}\n".encode())
            time.sleep(60)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        return pid, int(told.readline())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_gives_up_and_says_on_whom(tmp_path: Path) -> None:
    pid, _ = hold(tmp_path / "refs")
    try:
        with (
            pytest.raises(
                LockTimeout, match=f"gave up after 0.1 s on the lock refs, held for 0 s by process {pid} on "
            ),
            lock(tmp_path / "refs", wait=0.1),
        ):
            pass
    finally:
        kill(pid)


def test_says_whom_it_waits_for_and_then_gets_it(tmp_path: Path) -> None:
    pid, _ = hold(tmp_path / "refs")
    heard: list[Event] = []
    threading.Timer(1.3, lambda: os.kill(pid, signal.SIGKILL)).start()
    with lock(tmp_path / "refs", wait=20, emit=heard.append):
        assert [f"process {pid}" in event.message for event in heard if isinstance(event, Note)] == [True]
    os.waitpid(pid, 0)


def test_is_taken_over_from_the_dead_though_their_child_has_the_file_open(tmp_path: Path) -> None:
    pid, child = hold(tmp_path / "refs", child=True)
    kill(pid)
    try:
        with lock(tmp_path / "refs", wait=5):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_excludes_threads(tmp_path: Path) -> None:
    count, seen = 0, []

    def work() -> None:
        nonlocal count
        for _ in range(20):
            with lock(tmp_path / "refs", wait=30):
                before = count
                seen.append(before)
                time.sleep(0)
                count = before + 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == list(range(60))


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patience() == 60
    monkeypatch.setenv("LLMOS_WAIT", "2.5")
    assert patience() == 2.5
    monkeypatch.setenv("LLMOS_WAIT", "long")
    with pytest.raises(UsageError, match="LLMOS_WAIT must be a number of seconds, not 'long'"):
        patience()
