"""A stage as a process: how it runs, ends and is stopped.

Each process is a group of its own, so that Ctrl-C reaches it once, from here: a second one would cost a training its state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llmos_cli.core.processes import Process, host, start_time
from llmos_cli.operations.pipeline.hearing import Said, heard_out
from llmos_cli.operations.pipeline.log import Log

LEFT = "what it left running in the background goes on, and is heard no more (`> FILE 2>&1` keeps what it says)"


@dataclass(frozen=True)
class Ended:
    """`said`: the answer of llmos that it printed; `tail`: the last line of what it said otherwise."""

    code: int
    said: Mapping[str, Any]
    tail: str

    @property
    def failure(self) -> str:
        """The last that it said tells why it failed, but for what was killed: a shell ends with 137 then, of SIGKILL."""
        ended = f"it ended with {self.code}"
        if self.code - 128 in {*signal.Signals}:
            killed = f"{ended} ({signal.Signals(self.code - 128).name})"
            return f"{killed}; the last that it said: {self.tail}" if self.tail else killed
        return self.tail or ended


class Processes:
    """Those that run now; once they are told to stop, none begins any more."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.stopped = 0

    def stop(self, number: int) -> None:
        """Pass a signal on, once."""
        with self._lock:
            if self.stopped:
                return
            self.stopped = number
            for process in self._running:
                _signal(process, number)

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        hear: Callable[[str], None],
        began: Callable[[Process], None],
    ) -> Ended:
        """Until it ends; every line that it says goes to `log` and to `hear`, but JSON on stdout."""
        with Log(log, hear) as kept, self._started(command, cwd, env) as process:
            began(Process(process.pid, start_time(process.pid) or 0.0, host()))
            said = Said(kept, hear)
            if not heard_out(process, said):
                hear(LEFT)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
            document = said.document()
        return Ended(128 - code if code < 0 else code, document, said.last)

    def _started(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._lock:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._running.add(process)
            if self.stopped:
                _signal(process, self.stopped)
        return process


@contextmanager
def stopping(processes: Processes) -> Iterator[None]:
    """Ctrl-C and SIGTERM are passed on once to what runs, which saves its state; then nothing more begins."""

    def stop(number: int, frame: FrameType | None) -> None:
        # In a thread: this one may hold the lock that stopping takes.
        threading.Thread(target=processes.stop, args=(number,)).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended
