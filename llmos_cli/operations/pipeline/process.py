"""A stage as a process: its command line, what it says, and how it is stopped.

Each process is a group of its own, so that Ctrl-C reaches it once, from here: a second one would cost a training its state.
"""

from __future__ import annotations

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
from typing import TYPE_CHECKING, Any

from llmos_cli.core.processes import Process, host, start_time
from llmos_cli.core.redaction import redacted
from llmos_cli.operations.pipeline import answer
from llmos_cli.operations.pipeline.facts import Facts
from llmos_cli.operations.pipeline.log import Log
from llmos_cli.operations.pipeline.stages import EXPORT, Stage

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_LOOKING = 0.2
"""Seconds between looks whether a process has ended whose output something else holds open."""
_PIPE = 1 << 20
"""Bytes: as much as a pipe of Linux can hold, so that one read takes all that is there."""
_LINE = 1 << 20
"""Bytes after which a line is passed on though it has no end."""
_ANSWER = 64 << 20
"""Characters: what is longer is no answer of llmos."""
LEFT = "what it left running in the background goes on, and is heard no more (`> FILE 2>&1` keeps what it says)"
RESUMABLE = ("train", "prune", "quantize", "compress")
FLAGS = dict(zip(EXPORT, ("--format", "--type", "--dequantize", "--standalone"), strict=True))


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
            said = _Said(kept, hear)
            if not _heard_out(process, said):
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


class _Said:
    """What a command says: every line goes to its log and is heard as it comes, but for one JSON document on stdout, its answer."""

    def __init__(self, log: Log, hear: Callable[[str], None]) -> None:
        self._log, self._hear = log, hear
        self._held: list[str] = []
        """Lines of stdout that may be of a document."""
        self._length = 0
        self._is_text = False
        self._last_out = self._last_error = ""

    @property
    def last(self) -> str:
        """What tells best why it failed."""
        return self._last_error or self._last_out

    def error(self, line: str) -> None:
        self._last_error = self._tell(line) or self._last_error

    def out(self, line: str) -> None:
        if not self._is_text and (self._held or line.lstrip().startswith("{")):
            self._held.append(line)
            self._length += len(line)
            if self._length > _ANSWER:
                self._give_up_document()
            return
        self._is_text = self._is_text or bool(line.strip())
        self._last_out = self._tell(line) or self._last_out

    def flush(self) -> None:
        self._log.flush()

    def document(self) -> dict[str, Any]:
        """At its end; what was held for one and is none is told now."""
        found = answer.parsed("\n".join(self._held))
        if found is None:
            self._give_up_document()
        return found or {}

    def _give_up_document(self) -> None:
        held, self._held, self._is_text = self._held, [], True
        for line in held:
            self._last_out = self._tell(line) or self._last_out

    def _tell(self, line: str) -> str:
        line = redacted(line)
        self._log.write(line)
        if told := line.strip():
            self._hear(told)
        return told


def _heard_out(process: subprocess.Popen[bytes], said: _Said) -> bool:
    """Read stdout and stderr, line by line, until the process has ended and all that it wrote is read; False where something
    else has them open still: what it began in the background is not waited for, as a shell does not either."""
    with selectors.DefaultSelector() as streams:
        for stream, add in ((process.stdout, said.out), (process.stderr, said.error)):
            assert stream is not None, "both are pipes"
            os.set_blocking(stream.fileno(), False)
            streams.register(stream, selectors.EVENT_READ, _Splitter(add))
        ended = False
        while streams.get_map() and not ended:
            ended = process.poll() is not None  # before what is there is read: after its end it wrote nothing more
            ready = streams.get_map().values() if ended else [key for key, _ in streams.select(_LOOKING)]
            for key in list(ready):
                if _is_read(key.fd, key.data, _PIPE if ended else 1):
                    streams.unregister(key.fileobj)
            said.flush()
        left = list(streams.get_map().values())
        for key in left:
            key.data.feed(b"")
    return not left


def _is_read(pipe: int, lines: _Splitter, most: int) -> bool:
    """Whether a pipe has come to its end; read until nothing is there, or `most` bytes and more were."""
    while most > 0:
        try:
            chunk = os.read(pipe, _PIPE)
        except BlockingIOError:
            return False
        lines.feed(chunk)
        if not chunk:
            return True
        most -= len(chunk)
    return False


class _Splitter:
    """Bytes as they come, passed on as lines."""

    def __init__(self, add: Callable[[str], None]) -> None:
        self._add, self._rest = add, b""

    def feed(self, chunk: bytes) -> None:
        """`chunk`: b"" for the end."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if self._rest and (not chunk or len(self._rest) > _LINE):
            whole, self._rest = [*whole, self._rest], b""
        for line in whole:
            self._add(line.decode(errors="replace").rstrip("\r"))


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended


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
