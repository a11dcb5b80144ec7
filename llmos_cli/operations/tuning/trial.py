"""One trial of a search, in a worker process: a training run whose checkpoint moves no branch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from llmos_cli import catalog, device
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import Interrupted, LlmosError, Terminated, UsageError
from llmos_cli.events import Event, Metric, Note
from llmos_cli.methods.eval import Subject
from llmos_cli.models import headers
from llmos_cli.models.load import load
from llmos_cli.operations.config import resolve
from llmos_cli.operations.eval import prepare
from llmos_cli.operations.train import TrainResult, carry_out
from llmos_cli.operations.tuning.workers import Job, Message, Reported, Stopped, Trained
from llmos_cli.options.data import DataOptions

SPLIT = "validation"
OPERATION = "trial"
"""Not `train`: `train --resume` goes on with the user's runs, never with a trial."""


def use_share_of_threads(jobs: int) -> None:
    """This process's part of the cores, for whatever asks from here on."""
    share = max(1, device.threads() // jobs)
    os.environ["OMP_NUM_THREADS"] = str(share)
    device.threads.cache_clear()
    device.use_threads(share)


def serve(connection: Connection, root: Path) -> None:
    """Train what is sent, until nobody sends any more."""
    ws = Workspace(root)
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(carry_out_trial(ws, job, lambda reported: _ask(connection, reported)))
        except (BrokenPipeError, Interrupted, Terminated):
            return  # the search is gone, or wants no more


def _ask(connection: Connection, reported: Reported) -> bool:
    connection.send(reported)
    return bool(connection.recv())


class _Pruned(Exception):
    """Thrown through the training loop by the validation that was one too bad."""


def carry_out_trial(ws: Workspace, job: Job, goes_on: Callable[[Reported], bool]) -> Message:
    """Train with the job's settings. A point of the space that cannot be built or trained is a result too: `Stopped`."""
    started = time.monotonic()
    try:
        resolved = resolve(ws, "train", flags=dict(job.settings))
        with ws.begin(OPERATION, config=resolved.mapping, files=resolved.files) as run:
            try:
                run.listen(_watch(job, goes_on))
                result = carry_out(ws, run, None, resolved, resume=False, move=False, resumable=False)
                values = _values(ws, result, job.objectives)
            except _Pruned as pruned:
                run.emit(Note(str(pruned)))
                return Stopped(job.number, str(pruned), run.id, pruned=True)
    except (Interrupted, Terminated):
        raise
    except LlmosError as error:
        return Stopped(job.number, error.message)
    except (RuntimeError, ValueError) as error:
        # What torch and transformers raise for shapes that do not fit together and for memory that is not there.
        return Stopped(job.number, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return Trained(job.number, values, result.checkpoint, result.run, time.monotonic() - started)


def _watch(job: Job, goes_on: Callable[[Reported], bool]) -> Callable[[Event], None]:
    """Report each validation of the training loop. Trials of different speed are comparable at the same share of their
    budget, and so by the number of the validation, not by the step."""
    count = 0

    def hear(event: Event) -> None:
        nonlocal count
        if not isinstance(event, Metric) or event.split != SPLIT or event.step is None or not job.prunable:
            return
        count += 1
        if event.name == job.objectives[0] and not goes_on(Reported(job.number, count, event.value)):
            raise _Pruned(f"pruned at validation {count}: {event.name} {event.value:.4g}")

    return hear


def _values(ws: Workspace, result: TrainResult, objectives: Sequence[str]) -> list[float]:
    """The objectives of the checkpoint as it lies on disk: what training measured, and what methods/eval can."""
    known = dict(result.metrics.get(SPLIT, {}))
    if any(name not in known for name in objectives):
        known |= _measured(ws, ws.checkpoint(result.checkpoint), objectives)
    missing = [name for name in objectives if name not in known]
    if missing:
        raise UsageError(f"no trial measures {missing[0]}", hint=f"objectives can be: {', '.join(sorted(known))}")
    return [known[name] for name in objectives]


def _measured(ws: Workspace, checkpoint: Checkpoint, objectives: Sequence[str]) -> dict[str, float]:
    recorded = checkpoint.manifest.made
    exam = prepare(ws, checkpoint, DataOptions(**recorded.config["data"]), seed=recorded.seed, emit=lambda event: None)
    model = load(checkpoint.path, device=device.pick())
    subject = Subject(model, exam.prepared.splits[SPLIT], checkpoint.path, 16, headers.parameters(checkpoint.path))
    found: dict[str, float] = {}
    for method in catalog.methods("eval").values():
        module = method.load()
        if set(module.UNITS) & set(objectives):
            found |= module.measure(subject)
    return found
