"""stop: ask a run to end (SIGTERM), and wait until it has. A run saves its state, a deployment drains.

The audit hears of a signal before the process does: who stopped a run is recorded, even if `stop` itself is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass

from llmos_cli.core import access
from llmos_cli.core.processes import host, start_time
from llmos_cli.core.records import RunRecord
from llmos_cli.core.view import View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError

PAUSE = 0.05
_ENDED = {
    "done": "it is done",
    "failed": "it failed",
    "died": "it died without a word",
    "interrupted": "it was interrupted",
    "terminated": "it was terminated",
}


@dataclass(frozen=True)
class StopResult:
    """`status`: done (drained), terminated (state saved), or died (it had to be killed); `seconds` it took."""

    run: str
    name: str
    status: str
    seconds: float

    def view(self) -> View:
        return f"{self.name or self.run} ended ({self.status}) after {self.seconds:.1f} s"


def stop(ws: Workspace, name: str, *, timeout: float = 60.0, kill: bool = False) -> StopResult:
    """Raises where it is not running, runs on another host, or has not ended within `timeout` seconds and `kill` is not set."""
    record = ws.runs.find(name)
    called = record.name or record.id
    if not record.alive:
        raise LlmosError(
            f"{called} is not running: {_ENDED.get(record.status, record.status)}", hint="`llmos ps` lists what runs"
        )
    if record.host != host():
        raise LlmosError(f"{called} runs on {record.host}", hint=f"run `llmos stop {called}` there")
    start = time.monotonic()
    gone = _told_to_end(ws, record, signal.SIGTERM, f"stop {called}", timeout)
    if not gone:
        if not kill:
            raise LlmosError(
                f"{called} has not ended within {timeout:g} s (process {record.pid})",
                hint="`--timeout` waits longer, `--kill` ends it hard after that",
            )
        _told_to_end(ws, record, signal.SIGKILL, f"stop {called} --kill", 10.0)
    return StopResult(record.id, record.name, ws.runs.find(record.id).status, time.monotonic() - start)


def _told_to_end(ws: Workspace, record: RunRecord, number: signal.Signals, what: str, timeout: float) -> bool:
    """Whether it ended in time. What cannot be recorded first (a full disk, a lock that somebody holds) is done all the same, for
    that run may be what fills the disk, and recorded once it has ended."""
    recorded = _recorded(ws, what)
    send(record, number)
    gone = ended(record, timeout)
    if not recorded:
        ws.oplog.note(what, emit=ws.emit)
    return gone


def _recorded(ws: Workspace, what: str) -> bool:
    access.require_change()
    try:
        ws.oplog.note(what, emit=ws.emit)
    except LlmosError:
        return False
    return True


def send(record: RunRecord, number: signal.Signals) -> None:
    """To the run's process and no other: its start time is compared while a handle keeps its pid from being given away."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform != "linux":
            if start_time(record.pid) == record.pid_started:
                os.kill(record.pid, number)
            return
        handle = os.pidfd_open(record.pid)
        try:
            if start_time(record.pid) == record.pid_started:
                signal.pidfd_send_signal(handle, number)
        except PermissionError:
            raise LlmosError(
                f"{record.name or record.id} is another user's process", hint="who began it can stop it, and root"
            ) from None
        finally:
            os.close(handle)


def ended(record: RunRecord, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while start_time(record.pid) == record.pid_started:
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True
