"""What a search and its worker processes say to one another, and the processes themselves.

The search asks its study for values and judges; a worker only trains. So the study is touched by one process, a trial is
proposed with all that is known at that moment, and what is slow to import is imported once for each worker, not for each trial.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds that a worker has to end its run when it is told to stop."""


@dataclass(frozen=True)
class Job:
    """One trial: config keys and values; the metrics to return; whether intermediate values may end it."""

    number: int
    settings: Mapping[str, Any]
    objectives: Sequence[str]
    prunable: bool


@dataclass(frozen=True)
class Reported:
    """The `step`-th validation; the worker waits for a bool: whether to go on."""

    number: int
    step: int
    value: float


@dataclass(frozen=True)
class Trained:
    """`values` in the order of the job's objectives."""

    number: int
    values: Sequence[float]
    checkpoint: str
    run: str
    seconds: float


@dataclass(frozen=True)
class Stopped:
    """Ended without a result: `pruned`, or failed because of `reason`."""

    number: int
    reason: str
    run: str = ""
    pruned: bool = False


Message = Reported | Trained | Stopped


class Worker:
    """A process that trains one trial after another."""

    def __init__(self, root: Path, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._stderr = tempfile.NamedTemporaryFile(prefix="llmos-trials-")  # noqa: SIM115 (open as long as the worker lives)
        self._heard = 0
        self.process: BaseProcess = context.Process(
            target=serve, args=(theirs, root, jobs, self._stderr.name), daemon=True
        )
        self.process.start()
        theirs.close()  # or the pipe would not tell us when the process is gone
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        self.job = job
        self._heard = os.fstat(self._stderr.fileno()).st_size
        self.connection.send(job)

    def receive(self) -> Message:
        """What it said; that its process died is said here."""
        assert self.job is not None
        try:
            message: Message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(PATIENCE)
            message = Stopped(
                self.job.number, f"its process ended with code {self.process.exitcode}{self._last_words()}"
            )
        if not isinstance(message, Reported):
            self.job = None
        return message

    def _last_words(self) -> str:
        """The last line that it wrote to stderr since the trial began: of a traceback, the exception."""
        self._stderr.seek(self._heard)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Let it end its run, or end it after a while."""
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
        self._stderr.close()


class Workers:
    """As many workers as there are jobs; one that died is replaced when it is needed again."""

    def __init__(self, root: Path, jobs: int) -> None:
        self._root, self._jobs = root, jobs
        self._workers = [Worker(root, jobs) for _ in range(jobs)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def idle(self) -> Iterator[Worker]:
        for place, worker in enumerate(self._workers):
            if worker.job is None:
                if not worker.process.is_alive():
                    worker.stop()
                    self._workers[place] = worker = Worker(self._root, self._jobs)
                yield worker

    def busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.job is not None]

    def heard(self) -> list[Worker]:
        """Wait until some busy worker has something to say."""
        busy = {worker.connection: worker for worker in self.busy()}
        return [busy[connection] for connection in wait(list(busy)) if isinstance(connection, Connection)]


def serve(connection: Connection, root: Path, jobs: int, stderr: str) -> None:
    """A worker's life: until the search closes the pipe or terminates it. What it writes to stderr goes to that file."""
    with open(stderr, "ab") as file:
        os.dup2(file.fileno(), 2)
    # Ctrl-C reaches the whole group of processes; the search alone decides, and says so by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from llmos_cli.operations.tuning import trial

    trial.use_share_of_threads(jobs)
    trial.serve(connection, root)
