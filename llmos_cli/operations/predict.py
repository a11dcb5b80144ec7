"""`llmos predict`: what a checkpoint says of each row of a file, by the code that evaluates it.

    text, image   {"row": 0, "label": "cat", "confidence": 0.93, "probabilities": {...}, "truth": "cat"}
    words         {"row": 0, "tags": [...], "confidences": [...], "truth": [...]}
    language      {"row": 0, "nll": 61.2, "tokens": 24, "bytes": 96, "bits_per_byte": 0.92}: how likely the text is, nll in nats

`truth` is there where the file has labels; the accuracy that is told is recomputed from the rows that were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli import device
from llmos_cli.core import outfile
from llmos_cli.core.view import View, number, short
from llmos_cli.data import files, sources
from llmos_cli.data.rows import Rows, concatenated
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Note, Progress
from llmos_cli.models.load import load
from llmos_cli.operations import lineage
from llmos_cli.options.data import DataOptions
from llmos_cli.tasks import of_checkpoint
from llmos_cli.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace

CHUNK = 1024
"""Rows in memory at a time."""


@dataclass(frozen=True)
class PredictResult:
    """`file` was predicted; `predictions` is None where they were written to `output`, else that is; `accuracy` is None where the
    rows have no labels."""

    rev: str
    checkpoint: str
    rows: int
    file: str
    output: str | None
    accuracy: float | None
    predictions: Sequence[Mapping[str, Any]] | None

    def view(self) -> View:
        if self.predictions is not None:
            return "".join(line(prediction) for prediction in self.predictions)
        judged = "" if self.accuracy is None else f"; {number(100 * self.accuracy)} % agree with its labels"
        return f"{self.rows:,} predictions of {self.rev} ({short(self.checkpoint)}) written to {self.output}{judged}"


def line(prediction: Mapping[str, Any]) -> str:
    return json.dumps(prediction, ensure_ascii=False) + "\n"


def predict(
    ws: Workspace, rev: str, source: str, resolved: Resolved, *, out: Path | None = None, emit: Emit
) -> PredictResult:
    """Predict every row of `source`, into `out` (whole or not at all) or into the result."""
    checkpoint = ws.checkpoint(rev)
    task = of_checkpoint(checkpoint.manifest, checkpoint.config_json())
    rows = read(ws, source, task, lineage.effective_data(ws, checkpoint.id, resolved.config.data), emit)
    model = load(checkpoint.path, device=device.pick())
    processor = task.load_processor(checkpoint.path)
    tally, kept = _Tally(), list[Mapping[str, Any]]()
    with outfile.written(out) if out else nullcontext() as file:
        for done, chunk in _chunks(rows):
            said = task.predict(
                model,
                chunk[task.columns[0]],
                checkpoint.config_json(),
                processor,
                batch_size=resolved.config.eval.batch_size,
            )
            for prediction in _rows(said, chunk, task, first=done - len(chunk)):
                tally.add(prediction)
                file.write(line(prediction)) if file else kept.append(prediction)
            emit(Progress("predict", done, len(rows), unit="row"))
    return PredictResult(
        rev, checkpoint.id, len(rows), source, str(out) if out else None, tally.accuracy, None if out else kept
    )


def read(ws: Workspace, source: str, task: Task, data: DataOptions, emit: Emit) -> Rows:
    """All rows of a file, a folder or an fsspec URL, with labels where it has them; of `builtin:NAME` the test split."""
    if source.startswith(sources.BUILTIN):
        options = DataOptions(source=source, sequence_length=data.sequence_length)
        return sources.load(options, task.columns, cache=ws.cache).splits["test"]
    place = str(Path(source).resolve()) if Path(source).exists() else source
    options = DataOptions(source=place, columns=data.columns, format=_format(data, place))
    if len(task.columns) == 1:
        return _read(place, options, task.columns, ws)
    try:
        return _read(place, options, task.columns, ws)
    except UsageError:
        # Unlabelled rows are what one predicts on; where it is something else that is wrong, this says so again.
        rows = _read(place, options, task.columns[:1], ws)
    emit(Note(f"{source} has no {task.columns[-1]} column that can be read: its rows are predicted, not judged"))
    return rows


def _format(data: DataOptions, place: str) -> str | None:
    """What the user said of the format of their training data holds for a file of the same kind only."""
    trained = data.source if isinstance(data.source, str) else ""
    return data.format if Path(trained).suffix == Path(place).suffix else None


def _read(place: str, options: DataOptions, columns: Sequence[str], ws: Workspace) -> Rows:
    return concatenated(list(files.read(place, options, columns, cache=ws.cache).values()))


def _chunks(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(rows done with this one, the chunk)."""
    for start in range(0, len(rows), CHUNK):
        end = min(start + CHUNK, len(rows))
        yield end, Rows({name: list(column[start:end]) for name, column in rows.columns.items()})


def _rows(said: Sequence[Prediction], chunk: Rows, task: Task, *, first: int) -> Iterator[dict[str, Any]]:
    target = task.columns[-1]
    truths = chunk[target] if len(task.columns) > 1 and target in chunk.columns else [None] * len(chunk)
    for place, (prediction, truth) in enumerate(zip(said, truths, strict=True), first):
        yield {"row": place, **_told(prediction), **({} if truth is None else {"truth": truth})}


def _told(prediction: Prediction) -> dict[str, Any]:
    if prediction.label is not None:
        best = max(prediction.probabilities.values(), default=0.0)
        return {"label": prediction.label, "confidence": best, "probabilities": dict(prediction.probabilities)}
    if prediction.tags:
        return {"tags": list(prediction.tags), "confidences": list(prediction.confidences)}
    return dict(prediction.scores)


class _Tally:
    """How many labels, or tags of words, were right."""

    def __init__(self) -> None:
        self.right = self.all = 0

    def add(self, prediction: Mapping[str, Any]) -> None:
        if "truth" not in prediction:
            return
        truth, said = prediction["truth"], prediction.get("tags", prediction.get("label"))
        pairs = list(zip(said, truth, strict=False)) if isinstance(truth, list | tuple) else [(said, truth)]
        self.right += sum(ours == theirs for ours, theirs in pairs)
        self.all += len(truth) if isinstance(truth, list | tuple) else 1

    @property
    def accuracy(self) -> float | None:
        return self.right / self.all if self.all else None
