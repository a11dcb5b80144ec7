"""A stage as a process: its command line, what it says, and how it is stopped.

Each process is a group of its own, so that Ctrl-C reaches it once, from here: a second one would cost a training its state.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from llmos_cli.core import atomic
from llmos_cli.core.listing import plainly
from llmos_cli.core.processes import Process, host, start_time
from llmos_cli.core.redaction import redacted
from llmos_cli.operations.pipeline.facts import Facts
from llmos_cli.operations.pipeline.stages import EXPORT, Stage

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_LOOKING = 0.2
"""Seconds between looks whether a process has ended whose output something else holds open."""
_PIPE = 1 << 20
"""Bytes: as much as a pipe of Linux can hold, so that one read takes all that is there."""
LEFT = "what it left running in the background goes on, and is heard no more (`> FILE 2>&1` keeps what it says)"
RESUMABLE = ("train", "prune", "quantize", "compress")
FLAGS = dict(zip(EXPORT, ("--format", "--type", "--dequantize", "--standalone"), strict=True))


@dataclass(frozen=True)
class Ended:
    """`said`: the JSON document that a verb printed; `tail`: the last line of what it said otherwise."""

    code: int
    said: Mapping[str, Any]
    tail: str


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
        atomic.make_directory(log.parent)
        with open(log, "w", encoding="utf-8", opener=plainly) as file, self._started(command, cwd, env) as process:
            began(Process(process.pid, start_time(process.pid) or 0.0, host()))
            said: list[str] = []
            lines = _Lines(file, hear)
            if not _heard_out(process, said.append, lines.add):
                hear(LEFT)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
            document = _json("\n".join(said))
            for line in said if document is None else ():
                lines.add(line)
        return Ended(128 - code if code < 0 else code, document or {}, lines.last)

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


class _Lines:
    def __init__(self, file: IO[str], hear: Callable[[str], None]) -> None:
        self._file, self._hear, self.last = file, hear, ""

    def add(self, line: str) -> None:
        line = redacted(line)
        self._file.write(line + "\n")
        self._file.flush()
        if line.strip():
            self.last = line.strip()
            self._hear(line)


def _heard_out(process: subprocess.Popen[bytes], *adds: Callable[[str], None]) -> bool:
    """Read stdout and stderr, line by line, until the process has ended and all that it wrote is read; False where something
    else has them open still: what it began in the background is not waited for, as a shell does not either."""
    with selectors.DefaultSelector() as streams:
        for stream, add in zip((process.stdout, process.stderr), adds, strict=True):
            assert stream is not None, "both are pipes"
            streams.register(stream, selectors.EVENT_READ, _Splitter(add))
        ended = False
        while streams.get_map() and not ended:
            ended = (
                process.poll() is not None
            )  # asked before what is there is read: after its end it wrote nothing more
            for key, _ in streams.select(0 if ended else _LOOKING):
                chunk = os.read(key.fd, _PIPE)
                key.data.feed(chunk)
                if not chunk:
                    streams.unregister(key.fileobj)
        left = list(streams.get_map().values())
        for key in left:
            key.data.feed(b"")
    return not left


class _Splitter:
    """Bytes as they come, passed on as lines."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add, self._rest = add, b""

    def feed(self, chunk: bytes) -> None:
        """`chunk`: b"" for the end."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk and self._rest:
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._add(line.decode(errors="replace").rstrip("\r"))


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended


def _json(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def command(ws: Workspace, stage: Stage, facts: Facts, *, resume: str = "") -> list[str]:
    """What a stage runs; `resume`: the run that it goes on with."""
    if stage.options.sh is not None:
        return ["/bin/sh", "-c", stage.options.sh]
    words = [sys.executable, "-m", "llmos_cli", stage.verb, "--json"]
    if stage.verb in ("train", "prune", "quantize", "compress"):
        words.append("--keep-branch")
    if resume:
        return [*words, "--resume", "--run", resume]
    revisions = facts["revisions"]
    if stage.options.rev:
        words.append(revisions[stage.options.rev])
    if stage.verb == "export":
        return [*words, "-o", str(ws.root / stage.options.outputs[0]), *_flags(stage)]
    for file in stage.options.config:
        words += ["-c", str(ws.root / file)]
    for assignment in stage.sets:
        words += ["-s", assignment]
    if stage.verb == "train" and (teacher := facts["config"]["train"]["teacher"]):
        words += ["-s", f"train.teacher={revisions[teacher]}"]
    for text in facts["config"]["eval"]["require"] if stage.verb == "eval" else ():
        words += ["--require", by_id(text, revisions)]
    return [*words, "--detach"] if stage.verb == "deploy" else words


def by_id(text: str, revisions: Mapping[str, str]) -> str:
    """A gate with the ids of the checkpoints that it names."""
    from llmos_cli.operations import gate

    bound = gate.parse(text).bound
    if not bound.revision:
        return text
    found = gate.parse(text)
    return f"{found.metric} {found.op} {bound.factor!r} * {bound.metric}@{revisions[bound.revision]}"


def by_name(text: str, revisions: Mapping[str, str]) -> str:
    """The other way round, for people."""
    for word, checkpoint in revisions.items():
        text = text.replace(checkpoint, word)
    return text


def _flags(stage: Stage) -> list[str]:
    words: list[str] = []
    for key, flag in FLAGS.items():
        value = stage.options.set.get(key)
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, str(value)]
    return words


def environment(ws: Workspace, stage: Stage, facts: Facts, threads: int) -> dict[str, str]:
    """For a command: its variables, and the checkpoint of its REV as an id and a folder."""
    given = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if stage.options.sh is not None:
        given |= stage.variables
        if stage.options.rev:
            checkpoint = facts["revisions"][stage.options.rev]
            given |= {"LLMOS_REV": checkpoint, "LLMOS_CHECKPOINT": str(ws.checkpoint(checkpoint).path)}
    return given
