"""Evaluations: what was measured of one checkpoint, and where it is remembered.

An evaluation is a run; beside its events it keeps `evaluation.json`, under the key of everything that decides the numbers:
the checkpoint, the rows it was judged on, the options, and, where time was measured, the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import atomic
from llmos_cli.core.listing import read_text
from llmos_cli.errors import UNREADABLE

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.tasks.classification import ClassRow

FILE = "evaluation.json"
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


def keep(run: Path, key: str, evaluation: Evaluation) -> None:
    """Beside the events of the run that measured it."""
    atomic.write_text(run / FILE, json.dumps({"key": key, **asdict(evaluation)}, indent=1))


def known(ws: Workspace, key: str, rev: str) -> Evaluation | None:
    """The latest finished evaluation under `key`, as one of `rev`."""
    for record in reversed(ws.runs.list()):
        if record.operation == OPERATION and record.status == "done" and (found := _read(record.path / FILE, key)):
            return replace(found, rev=rev, cached=True)
    return None


def _read(path: Path, key: str) -> Evaluation | None:
    try:
        value = json.loads(read_text(path))
    except (FileNotFoundError, *UNREADABLE):
        return None  # a run that kept none, or half of one: measured again
    if value.pop("key", None) != key:
        return None
    metrics = {name: Measured(**measured) for name, measured in value.pop("metrics").items()}
    classes = _classes(value.pop("classes"))
    return Evaluation(**value, metrics=metrics, classes=classes)


def _classes(rows: Sequence[Mapping[str, Any]]) -> tuple[ClassRow, ...]:
    if not rows:
        return ()  # a language model: scikit-learn need not be imported
    from llmos_cli.tasks.classification import ClassRow

    return tuple(ClassRow(**row) for row in rows)
