"""Locks that wait, say for whom, and outlive nobody.

A lock is a file held by `flock`, which the kernel frees when its holder dies, with the holder's name inside. Where a
child of a dead holder still has the file open (a fork), the lock is taken over by replacing the file. On a file system
that other machines may share, and where `flock` is refused, a second file must be made by exclusive creation too: `claims.py`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llmos_cli.core import claims
from llmos_cli.core.atomic import make_directory, refusals, write_all
from llmos_cli.core.listing import plainly, read_bytes
from llmos_cli.core.processes import Process, this_process
from llmos_cli.core.redaction import command_line
from llmos_cli.errors import UNREADABLE, LockTimeout, UsageError
from llmos_cli.events import Emit, Note, ignore

_SAY_AFTER = 1.0
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


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
    held = _acquire(path, patience() if wait is None else wait, emit)
    try:
        yield
    finally:
        if held.claimed:
            claims.release(path)
        _empty(path, held.descriptor)
        if held.flocked:
            fcntl.flock(held.descriptor, fcntl.LOCK_UN)
        os.close(held.descriptor)


class _Held(NamedTuple):
    descriptor: int
    flocked: bool
    claimed: bool


def _acquire(path: Path, wait: float, emit: Emit) -> _Held:
    start, pause, said = time.monotonic(), 0.005, False
    while (held := _try(path)) is None:
        waited = time.monotonic() - start
        if waited >= wait:
            raise _timeout(path, wait)
        if waited >= _SAY_AFTER and not said:
            emit(Note(f"waiting for {_describe(path)}"))
            said = True
        time.sleep(min(pause, max(wait - waited, 0)))
        pause = min(pause * 1.5, 0.1)
    return held


def _try(path: Path) -> _Held | None:
    """The locked file with our name in it, or None when somebody else holds it."""
    descriptor = _open(path)
    try:
        flocked = _flock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        _take_over_if_dead(path, path)
        return None
    if not _still_at(path, descriptor):  # replaced between open and flock
        os.close(descriptor)
        return None
    claimed = not flocked or claims.needed(path.parent)
    if claimed and not claims.claim(path, _name()):
        os.close(descriptor)
        if flocked:  # without it two waiters could take over at once
            _take_over_if_dead(path, claims.path_of(path))
        return None
    if not _empty(path, descriptor):
        if claimed:
            claims.release(path)
        os.close(descriptor)
        return None
    _sign(descriptor)
    return _Held(descriptor, flocked, claimed)


def _flock(descriptor: int) -> bool:
    """False where the file system knows no such lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return False
        raise
    return True


def _open(path: Path) -> int:
    with refusals(path):
        make_directory(path.parent)
        return plainly(path, os.O_RDWR | os.O_CREAT)


def _still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _name() -> bytes:
    process = this_process()
    holder = {
        "pid": process.pid,
        "started": process.started,
        "host": process.host,
        "command": command_line(sys.argv)[:200],
        "since": time.time(),
    }
    return json.dumps(holder).encode()


def _empty(path: Path, descriptor: int) -> bool:
    """A file without a name inside is nobody's, even if a forked child still has it open. Copy-on-write needs room even to shorten a
    file: where there is none the file goes (False), which needs none, for with a dead process's name in it somebody would take it over."""
    try:
        os.ftruncate(descriptor, 0)
    except OSError:
        path.unlink(missing_ok=True)
        return False
    return True


def _sign(descriptor: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with contextlib.suppress(OSError):  # the lock is held without a name too, and on a full disk `gc` must get it
        write_all(descriptor, _name())


def _holder(path: Path) -> dict[str, object] | None:
    try:
        value = json.loads(read_bytes(path) or b"null")
    except (FileNotFoundError, *UNREADABLE):
        return None
    return value if isinstance(value, dict) else None


def _take_over_if_dead(path: Path, signed: Path) -> None:
    """Unlink the file that a dead process signed (the lock's own or its claim), so that the next try makes a new one.

    A second lock makes sure that only one of several waiters does so, and only to the file it looked at.
    """
    holder = _holder(signed)
    if holder is None or Process.from_json(holder).alive():
        return
    guard = _open(path.with_name(path.name + ".takeover"))
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if _holder(signed) == holder:
            signed.unlink(missing_ok=True)
    finally:
        os.close(guard)


def _describe(path: Path) -> str:
    holder = _holder(claims.path_of(path)) or _holder(path)
    if holder is None:
        return f"the lock {path.name}"
    seconds = time.time() - float(str(holder.get("since", time.time())))
    return (
        f"the lock {path.name}, held for {seconds:.0f} s by process {holder['pid']} on {holder['host']} "
        f"({holder.get('command', '?')})"
    )


def _timeout(path: Path, wait: float) -> LockTimeout:
    hint = "wait for it to end, or wait longer with --wait SECONDS"
    if (claim := claims.path_of(path)).exists():
        hint += f"; if its machine went down, nobody else can know: `rm {claim}`"
    return LockTimeout(f"gave up after {wait:g} s on {_describe(path)}", hint=hint)
