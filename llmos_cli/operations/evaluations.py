"""Evaluations: what was measured of one checkpoint, and where it is remembered.

An evaluation is a run; beside its events it keeps `evaluation.json`, under the key of everything that decides the numbers:
the checkpoint, the rows it was judged on, the options, and, where time was measured, the machine. What this workspace measured, by its
ledger, and is as it was written answers for it; what another one measured, only where the user says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import kept
from llmos_cli.core.endings import EDITED
from llmos_cli.core.listing import read_bytes, read_text
from llmos_cli.core.records import EVENTS
from llmos_cli.errors import UNREADABLE, Corrupt
from llmos_cli.events import Emit, Note

if TYPE_CHECKING:
    from llmos_cli.core.runs import Run
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.tasks.classification import ClassRow

OPERATION = "eval"


@dataclass(frozen=True)
class Measured:
    """A number in `unit`; `low` and `high` bound 95 % of its bootstrap resamples, `sd` is its standard deviation over folds."""

    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    sd: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Of the checkpoint that `rev` named; `classes` has a row for each class of a classifier; `cached` when it is an earlier run's."""

    rev: str
    checkpoint: str
    task: str
    split: str
    samples: int
    metrics: Mapping[str, Measured]
    classes: Sequence[ClassRow] = ()
    run: str = ""
    cached: bool = False

    @property
    def values(self) -> dict[str, float]:
        return {name: measured.value for name, measured in self.metrics.items()}


def key_of(facts: Mapping[str, Any]) -> str:
    """Of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def keep(run: Run, key: str, evaluation: Evaluation) -> None:
    """Beside the events of the run that measured it, which have its hash."""
    run.emit(kept.write(run.path, {kept.EVALUATION: json.dumps({"key": key, **asdict(evaluation)}, indent=1)}))


def known(ws: Workspace, key: str, rev: str, *, fetched: bool = False, emit: Emit) -> Evaluation | None:
    """The latest finished evaluation under `key`, as one of `rev`; `fetched`: whoever measured it. Those that are not believed are told."""
    for record in reversed(ws.runs.list()):
        found = _read(record.path, key) if record.operation == OPERATION and record.status == "done" else None
        if found is not None:
            if not (doubt := _doubt(ws, record.path, fetched)):
                return replace(found, rev=rev, run=record.id, cached=True)
            emit(doubt)
    return None


def _doubt(ws: Workspace, run: Path, fetched: bool) -> Note | None:
    """Why what it measured is not believed; None where it is."""
    entry = ws.ledger.find(run.name)
    try:
        kept.require(run, kept.EVALUATION)
    except Corrupt as error:
        return Note(f"{error.message}: it is not believed; {error.hint}", "warning")
    if entry is not None and not entry.fits(read_bytes(run / EVENTS)):
        return Note(f"runs/{run.name}/{EVENTS} {EDITED}: it is not believed; `llmos fsck` tells more", "warning")
    if (entry is None or not entry.own) and not fetched:
        return Note(f"run {run.name} is not known to have measured it here: --fetched takes its word")
    return None


def _read(run: Path, key: str) -> Evaluation | None:
    """None of a run that kept none under that key, or of before there was a hash of it: measured again."""
    try:
        value = json.loads(read_text(run / kept.EVALUATION))
        if value.pop("key") != key or not kept.expected(run).get(kept.EVALUATION):
            return None
        metrics = {str(name): _measured(each) for name, each in value.pop("metrics").items()}
        return Evaluation(**value | {"metrics": metrics, "classes": _classes(value.pop("classes"))})
    except (FileNotFoundError, Corrupt, *UNREADABLE):
        return None


def _measured(told: Mapping[str, Any]) -> Measured:
    """Another workspace may have written anything."""
    found = Measured(**told)
    numbers = [found.value, *(each for each in (found.low, found.high, found.sd) if each is not None)]
    if not all(type(each) in (int, float) for each in numbers):
        raise ValueError("what was measured is a number")
    return found


def _classes(rows: Sequence[Mapping[str, Any]]) -> tuple[ClassRow, ...]:
    if not rows:
        return ()  # a language model: scikit-learn need not be imported
    from llmos_cli.tasks.classification import ClassRow

    return tuple(ClassRow(**row) for row in rows)
