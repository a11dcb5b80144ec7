"""Who is alive: a process is its pid, the time it started, and its host.

The start time tells a process from a later one that was given the same pid.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from typing import Any, NamedTuple

_SCRATCH = re.compile(r"[^_]*_(?P<pid>[0-9]{1,18})_(?P<started>[0-9]+\.[0-9]+)_[0-9a-f]+_(?P<host>.+)", re.ASCII)


class Process(NamedTuple):
    """`started`: seconds since boot on Linux, since the epoch elsewhere; only ever compared for equality."""

    pid: int
    started: float
    host: str

    @classmethod
    def from_json(cls, value: Any) -> Process:
        return cls(int(value["pid"]), float(value["started"]), str(value["host"]))

    def alive(self) -> bool:
        """A process of another host counts as alive, and one that the system hides: nothing here can know better."""
        return self.host != host() or start_time(self.pid) == self.started or _hidden(self.pid)


def this_process() -> Process:
    # Not cached: a fork is another process.
    pid = os.getpid()
    return Process(pid, start_time(pid) or 0.0, host())


def host() -> str:
    return os.uname().nodename or "localhost"


def user_name(number: int) -> str:
    """The number itself where it has no name: in a container, say."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def scratch_name(kind: str) -> str:
    """A new name for something unfinished: it says whose it is, so that it can be told when nobody's."""
    process = this_process()
    return f"{kind}_{process.pid}_{process.started}_{os.urandom(4).hex()}_{process.host}"


def is_abandoned(name: str) -> bool:
    """Whether a name was made by `scratch_name` in a process of this host that is dead."""
    found = _SCRATCH.fullmatch(name)
    return (
        found is not None
        and found["host"] == host()
        and not Process(int(found["pid"]), float(found["started"]), found["host"]).alive()
    )


def start_time(pid: int) -> float | None:
    """When `pid` started, or None when there is no such process (a zombie is none: it only waits to be reaped)."""
    if sys.platform == "linux":
        return _start_time_from_proc(pid)
    return _start_time_from_psutil(pid)


def _start_time_from_proc(pid: int) -> float | None:
    """Fields 3 (state) and 22 (start time in clock ticks since boot) of /proc/PID/stat, see proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name in field 2 may hold spaces and parentheses; nothing after its last ")" does.
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _hidden(pid: int) -> bool:
    """Another user's process, of which a /proc that shows everybody their own alone (hidepid) says nothing: only that it is there
    can be known, and a lock must not be taken from the living."""
    if sys.platform != "linux" or os.access(f"/proc/{pid}/stat", os.R_OK):
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return False


def _start_time_from_psutil(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
