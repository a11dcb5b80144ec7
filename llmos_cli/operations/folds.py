"""k-fold cross-validation: train k times as the checkpoint was trained, each time on all but one part, and judge that part.

For data so small that one held-out split says little. All samples take part, those of the validation and test splits too;
the tokenizer and the classes are those of the training split. No fold chooses its weights by looking at its held-out part:
the last step's are kept. Texts are cut into contiguous parts, for their sequences run on into one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch

from llmos_cli import device
from llmos_cli.core.config import check
from llmos_cli.core.yaml12 import from_plain
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Metric, Progress
from llmos_cli.models.load import load
from llmos_cli.operations import lineage
from llmos_cli.operations.config import methods
from llmos_cli.operations.evaluations import Evaluation, Measured
from llmos_cli.operations.fit import fit
from llmos_cli.operations.training.beginning import beginning
from llmos_cli.operations.training.holding import Held
from llmos_cli.operations.training.rounding import rounding, write
from llmos_cli.operations.training.start import Start, held, make_model, start, stored_dtype
from llmos_cli.options.verbs import EvalOptions, TrainConfig
from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Batch, Split

if TYPE_CHECKING:
    from llmos_cli.core.manifest import Manifest
    from llmos_cli.core.workspace import Checkpoint, Workspace

RUNNING_ON = ("causal-lm", "token-classification")
"""Tasks whose neighbouring samples come from one text."""
SECTIONS = ("seed", "model", "data", "train")


@dataclass(frozen=True)
class Pool:
    """Samples of several splits as one."""

    places: Sequence[tuple[Split, int]]

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """The splits of one task pad to the same shape, so that single samples can be stacked."""
        singles = [self.places[row][0].batch([self.places[row][1]], augment_seed=augment_seed) for row in rows]
        return {name: _stacked([single[name] for single in singles], name) for name in singles[0]}

    def bytes(self, rows: Sequence[int]) -> int:
        return sum(self.places[row][0].bytes([self.places[row][1]]) for row in rows)

    def take(self, rows: Sequence[int]) -> Pool:
        return Pool([self.places[row] for row in rows])


def _stacked(tensors: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """Rows of different length are padded at the end, labels with what is not scored."""
    longest = max(tensor.shape[-1] for tensor in tensors)
    if all(tensor.shape[-1] == longest for tensor in tensors):
        return torch.cat(list(tensors))
    fill = -100 if name == "labels" else 0
    return torch.cat(
        [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1]), value=fill) for tensor in tensors]
    )


def cross_validate(
    ws: Workspace, rev: str, checkpoint: Checkpoint, options: EvalOptions, *, seed: int, emit: Emit
) -> Evaluation:
    """Mean and standard deviation of the task's metrics over `options.folds` trainings."""
    trained = _training(ws, checkpoint)
    config = _config(trained)
    parent = ws.checkpoint(trained.made.parents[0]) if trained.made.parents else None
    teacher = ws.checkpoint(config.train.teacher) if config.train.teacher else None
    begin = start(ws, parent, config, teacher)
    pool = Pool([(split, row) for split in begin.prepared.splits.values() for row in range(len(split))])
    parts = folds(len(pool), options.folds or 2, seed=seed, contiguous=begin.task.name in RUNNING_ON)
    found: list[Mapping[str, float]] = []
    run_config = {"eval": options.model_dump(mode="json"), "seed": seed}
    with ws.begin("eval", config=run_config, parents=[checkpoint.id]) as run:
        run.listen(emit)
        for number, held_out in enumerate(parts, 1):
            rest = [row for part in parts if part is not held_out for row in part]
            found.append(
                _fold(ws, begin, parent, teacher, config, pool.take(rest), pool.take(held_out), options, run.emit)
            )
            for name, value in found[-1].items():
                run.emit(Metric(name, value, f"fold {number}"))
            run.emit(Progress("fold", number, len(parts), unit="fold"))
    metrics = {
        name: Measured(mean(fold[name] for fold in found), sd=stdev(fold[name] for fold in found)) for name in found[0]
    }
    return Evaluation(rev, checkpoint.id, begin.task.name, "folds", len(pool), metrics, run=run.id)


def _training(ws: Workspace, checkpoint: Checkpoint) -> Manifest:
    """The nearest checkpoint of the line that was trained here."""
    for manifest in lineage.line(ws, checkpoint.id):
        if manifest.made.config.get("train"):
            return manifest
    raise UsageError(
        f"{checkpoint.id[:12]} was not trained here, so there is no training to repeat", hint="leave eval.folds out"
    )


def _config(trained: Manifest) -> TrainConfig:
    """As it was trained, but without a look at held-out data on the way."""
    recorded = {key: value for key, value in trained.made.config.items() if key in SECTIONS}
    recorded["train"] = {**recorded["train"], "patience": None, "keep": "last"}
    config = check(from_plain(recorded, trained.id[:12]), TrainConfig, methods=methods)
    assert isinstance(config, TrainConfig)
    return config


def folds(samples: int, count: int, *, seed: int, contiguous: bool) -> list[list[int]]:
    """`count` parts of nearly equal size that together hold every sample once."""
    if samples < count:
        raise UsageError(f"{samples} samples cannot be cut into {count} folds", hint="use fewer folds")
    order = (
        range(samples)
        if contiguous
        else torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    )
    edges = [part * samples // count for part in range(count + 1)]
    return [list(order[start:end]) for start, end in pairwise(edges)]


def _fold(
    ws: Workspace,
    begin: Start,
    parent: Checkpoint | None,
    teacher: Checkpoint | None,
    config: TrainConfig,
    rest: Split,
    held_out: Split,
    options: EvalOptions,
    emit: Emit,
) -> dict[str, float]:
    """Train on the rest, save, read back, judge the held-out part."""
    model: Any = make_model(begin, ws, parent, config, emit)
    masks, dtype = held(begin, ws, parent, model, config, emit), stored_dtype(begin)
    begun = beginning(begin, parent, model, config, rest, emit=emit)
    with rounding(model, config.train.quantize, dtype, begun) as rounded:
        fit(
            model,
            rest,
            None,
            begin.task,
            config.train,
            seed=config.seed,
            facts=begin.prepared.facts,
            emit=emit,
            # It takes part in every step, whatever `teacher_top` says: what is cached is of the training split alone.
            teacher=load(teacher.path, device=device.pick()) if teacher else None,
            held=Held(rounded.masks(masks)),
        )
    with ws.stage() as staged:
        write(ws, model, rounded, staged, dtype=dtype, processor=begin.prepared.processor)
        reloaded = load(staged, device=device.pick())
        outcome = scoring.evaluate(begin.task, reloaded, held_out, batch_size=options.batch_size, emit=emit)
    return begin.task.metrics(outcome, begin.prepared.facts)
