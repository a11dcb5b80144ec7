"""Locks that wait, say for whom, and outlive nobody.

A lock is a file held by `flock`, which the kernel frees when its holder dies, with the holder's name inside. Where a
child of a dead holder still has the file open (a fork), the lock is taken over by replacing the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llmos_cli.core.atomic import make_directory, refusals, write_all
from llmos_cli.core.processes import Process, this_process
from llmos_cli.errors import LockTimeout, UsageError
from llmos_cli.events import Emit, Note, ignore

_SAY_AFTER = 1.0


def patience() -> float:
    """Seconds to wait for a lock: `LLMOS_WAIT` (set by `--wait`), or a minute."""
    text = os.environ.get("LLMOS_WAIT", "60")
    try:
        return float(text)
    except ValueError:
        raise UsageError(
            f"LLMOS_WAIT must be a number of seconds, not {text!r}", hint="for example LLMOS_WAIT=5"
        ) from None


@contextlib.contextmanager
def lock(path: Path, wait: float | None = None, emit: Emit = ignore) -> Iterator[None]:
    """Hold the lock at `path`; LockTimeout after `wait` seconds. After one second `emit` hears whom we wait for."""
    descriptor = _acquire(path, patience() if wait is None else wait, emit)
    try:
        yield
    finally:
        # Emptied first: a file without a name inside is nobody's, even if a forked child still has it open.
        os.ftruncate(descriptor, 0)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _acquire(path: Path, wait: float, emit: Emit) -> int:
    start, pause, said = time.monotonic(), 0.005, False
    while (descriptor := _try(path)) is None:
        waited = time.monotonic() - start
        if waited >= wait:
            raise _timeout(path, wait)
        if waited >= _SAY_AFTER and not said:
            emit(Note(f"waiting for {_describe(path)}"))
            said = True
        time.sleep(min(pause, max(wait - waited, 0)))
        pause = min(pause * 1.5, 0.1)
    return descriptor


def _try(path: Path) -> int | None:
    """The locked file's descriptor with our name in it, or None when somebody else holds it."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        _take_over_if_dead(path)
        return None
    if not _still_at(path, descriptor):  # replaced between open and flock
        os.close(descriptor)
        return None
    _sign(descriptor)
    return descriptor


def _open(path: Path) -> int:
    with refusals(path):
        make_directory(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    process = this_process()
    holder = {
        "pid": process.pid,
        "started": process.started,
        "host": process.host,
        "command": " ".join(sys.argv)[:200],
        "since": time.time(),
    }
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    with refusals("the lock"):
        write_all(descriptor, json.dumps(holder).encode())


def _holder(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(path.read_bytes() or b"null")
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _take_over_if_dead(path: Path) -> None:
    """Unlink the file that a dead process signed, so that the next try makes a new one.

    A second lock makes sure that only one of several waiters does so, and only to the file it looked at.
    """
    holder = _holder(path)
    if holder is None or Process.from_json(holder).alive():
        return
    guard = _open(path.with_name(path.name + ".takeover"))
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if _holder(path) == holder:
            path.unlink(missing_ok=True)
    finally:
        os.close(guard)


def _describe(path: Path) -> str:
    holder = _holder(path)
    if holder is None:
        return f"the lock {path.name}"
    seconds = time.time() - float(str(holder.get("since", time.time())))
    return (
        f"the lock {path.name}, held for {seconds:.0f} s by process {holder['pid']} on {holder['host']} "
        f"({holder.get('command', '?')})"
    )


def _timeout(path: Path, wait: float) -> LockTimeout:
    return LockTimeout(
        f"gave up after {wait:g} s on {_describe(path)}", hint="wait for it to end, or wait longer with --wait SECONDS"
    )
