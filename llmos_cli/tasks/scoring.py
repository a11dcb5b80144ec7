"""Scoring: the loss, KL and evaluation that all tasks share, and intervals by bootstrap over samples.

Shapes: B samples, L positions in a sample, N scored positions, C classes, S samples in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli import events
from llmos_cli.tasks.base import Batch, Outcome, Scored, Split, Task

LOGITS = 2**25
"""Logits of one model that are in memory at once, in evaluation (128 MB in fp32)."""
CHUNK = 2**21
"""Logits whose softmax is in memory at once, in evaluation (8 MB in fp32)."""


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """The model's logits; labels stay behind, so that every model and its parent are scored by the same code."""
    logits: Tensor = outputs(model, batch).logits
    return logits


def outputs(model: nn.Module, batch: Batch, **asked: Any) -> Any:
    """All that the model gives for a batch; `asked`: what else its forward is told."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    cacheless = {"use_cache": False} if getattr(getattr(model, "config", None), "use_cache", False) else {}
    return model(**inputs, **cacheless, **asked)


def cross_entropy(scored: Scored, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean negative log-likelihood of the right classes, in nats."""
    return F.cross_entropy(scored.logits_NC.float(), scored.labels_N, label_smoothing=label_smoothing)


def kl(teacher: Scored, student: Scored, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) in nats for each position, [N]; both sides' logits divided by `temperature`."""
    teacher_NC = F.log_softmax(teacher.logits_NC.float() / temperature, dim=-1)
    student_NC = F.log_softmax(student.logits_NC.float() / temperature, dim=-1)
    return F.kl_div(student_NC, teacher_NC, log_target=True, reduction="none").sum(-1)


def evaluate(
    task: Task,
    model: nn.Module,
    split: Split,
    *,
    batch_size: int,
    teacher: nn.Module | None = None,
    emit: events.Emit = events.ignore,
    stage: str = "evaluate",
) -> Outcome:
    """Every sample of `split` once, in order; `teacher` adds the column `kl` (of the teacher to the model).

    Memory is bounded by one batch, of fewer than `batch_size` samples where a large vocabulary makes them large: what is kept is
    a few numbers for each scored position.
    """
    was_training = model.training
    model.eval()
    kept: list[dict[str, Tensor]] = []
    started, samples = time.monotonic(), len(split)
    with torch.inference_mode():
        for rows in batches(samples, within(batch_size, logits_of_one(model, split))):
            kept.append(_judged(task, model, teacher, split, rows))
            elapsed = time.monotonic() - started
            emit(progress(stage, rows.stop, samples, elapsed))
    model.train(was_training)
    return outcome(split, kept)


def outcome(split: Split, kept: list[dict[str, Tensor]]) -> Outcome:
    """The columns of all batches of `split`, in order, as one."""
    samples = len(split)
    bytes_S = torch.tensor([split.bytes([row]) for row in range(samples)])
    columns = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}
    core = {name: columns.pop(name) for name in ("nll_N", "predicted_N", "labels_N", "confidence_N", "sample_N")}
    return Outcome(**core, bytes=int(bytes_S.sum()), bytes_S=bytes_S, extra=columns)


def probabilities(task: Task, model: nn.Module, split: Split, *, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(probabilities [N, C] of the scored positions, global sample [N]) of each batch in order, on the CPU."""
    model.eval()
    for rows in batches(len(split), within(batch_size, logits_of_one(model, split))):
        with torch.inference_mode():
            batch = _on(model, split.batch(rows))
            scored = task.scored(forward(model, batch), batch)
            yield F.softmax(scored.logits_NC.float(), dim=-1).cpu(), scored.sample_N.cpu() + rows.start


def logits_of_one(model: nn.Module, split: Split) -> int:
    """Logits that a model with a head over a vocabulary gives for one sample; of other models 1, for they have few."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    positions = split.batch([0]).get("input_ids", torch.empty(1)).numel() if len(split) else 1
    return int(getattr(find(), "out_features", 1)) * positions


def within(batch_size: int, logits: int, most: int | None = None) -> int:
    """Samples with so many `logits` each that make a batch: `batch_size`, or fewer, so that there are at most `most` (LOGITS)."""
    return max(1, min(batch_size, (most or LOGITS) // logits))


def batches(samples: int, size: int) -> Iterator[range]:
    """Ranges of at most `size` rows that cover all samples in order."""
    return (range(start, min(start + size, samples)) for start in range(0, samples, size))


def _judged(task: Task, model: nn.Module, teacher: nn.Module | None, split: Split, rows: range) -> dict[str, Tensor]:
    batch = _on(model, split.batch(rows))
    return columns(
        task, batch, forward(model, batch), forward(teacher, batch) if teacher is not None else None, rows.start
    )


def columns(task: Task, batch: Batch, logits: Tensor, taught_by: Tensor | None, first: int) -> dict[str, Tensor]:
    """What an evaluation keeps of a batch whose first sample is number `first`: a column a number, on the CPU; `kl` where a
    teacher's logits are given."""
    scored = task.scored(logits, batch)
    taught = task.scored(taught_by, batch) if taught_by is not None else None
    parts = [_position_columns(chunk, other) for chunk, other in _chunks(scored, taught)]
    found = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return {**found, "labels_N": scored.labels_N.cpu(), "sample_N": scored.sample_N.cpu() + first}


def _on(model: nn.Module, batch: Batch) -> Batch:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _chunks(scored: Scored, taught: Scored | None) -> Iterator[tuple[Scored, Scored | None]]:
    """Slices small enough that their fp32 softmax fits in memory beside the logits."""
    positions, classes = scored.logits_NC.shape
    size = max(1, CHUNK // max(1, classes))
    for start in range(0, max(1, positions), size):
        part = slice(start, start + size)
        yield _slice(scored, part), _slice(taught, part) if taught is not None else None


def _slice(scored: Scored, part: slice) -> Scored:
    return Scored(scored.logits_NC[part], scored.labels_N[part], scored.sample_N[part])


def _position_columns(scored: Scored, taught: Scored | None) -> dict[str, Tensor]:
    logp_NC = F.log_softmax(scored.logits_NC.float(), dim=-1)
    best_N, predicted_N = logp_NC.max(-1)
    columns = {
        "nll_N": -logp_NC.gather(1, scored.labels_N[:, None])[:, 0],
        "predicted_N": predicted_N,
        "confidence_N": best_N.exp(),
    }
    if taught is not None:
        teacher_NC = F.log_softmax(taught.logits_NC.float(), dim=-1)
        columns["kl"] = F.kl_div(logp_NC, teacher_NC, log_target=True, reduction="none").sum(-1)
    return columns


def progress(stage: str, done: int, total: int, elapsed: float) -> events.Progress:
    rate = done / max(elapsed, 1e-9)
    return events.Progress(
        stage, done, total, unit="sample", rate=rate, rate_unit="samples", elapsed=elapsed, eta=(total - done) / rate
    )


@dataclass(frozen=True)
class Interval:
    """A number and the bounds that hold `level` of its bootstrap resamples."""

    value: float
    low: float
    high: float


def intervals(
    task: Task, outcome: Outcome, facts: Mapping[str, Any], *, seed: int, resamples: int = 200, level: float = 0.95
) -> dict[str, Interval]:
    """Percentile intervals of all metrics: whole samples are drawn with replacement, as positions of one are not independent."""
    values = task.metrics(outcome, facts)
    draws = [task.metrics(resample, facts) for resample in resampled(outcome, seed=seed, resamples=resamples)]
    return {name: _interval(value, [draw.get(name, value) for draw in draws], level) for name, value in values.items()}


def paired(
    task: Task,
    base: Outcome,
    other: Outcome,
    facts: Mapping[str, Any],
    *,
    seed: int,
    resamples: int = 200,
    level: float = 0.95,
    compare: Callable[[float, float], float] = lambda base, other: other - base,
) -> dict[str, Interval]:
    """Intervals of `compare(base's metric, other's metric)` where both are resampled together.

    Two checkpoints judged on the same samples err together, so the interval of their difference is far narrower than two
    intervals side by side; pass a quotient as `compare` to judge a relative bound.
    """
    if len(_sizes(base)) != len(_sizes(other)):
        raise ValueError("paired outcomes need the same samples")
    ours, theirs = task.metrics(base, facts), task.metrics(other, facts)
    names = [name for name in ours if name in theirs]
    draws = [
        (task.metrics(a, facts), task.metrics(b, facts))
        for a, b in zip(
            resampled(base, seed=seed, resamples=resamples),
            resampled(other, seed=seed, resamples=resamples),
            strict=True,
        )
    ]
    return {
        name: _interval(compare(ours[name], theirs[name]), [compare(a[name], b[name]) for a, b in draws], level)
        for name in names
    }


def resampled(outcome: Outcome, *, seed: int, resamples: int) -> Iterator[Outcome]:
    """`outcome` with its samples drawn with replacement; the same seed draws the same samples of another outcome."""
    random, samples = np.random.default_rng(seed), len(_sizes(outcome))
    for _ in range(resamples):
        count_S = torch.from_numpy(np.bincount(random.integers(samples, size=samples), minlength=samples))
        size = int((count_S * outcome.bytes_S).sum()) if outcome.bytes_S is not None else outcome.bytes
        yield replace(outcome, weights_N=count_S[outcome.sample_N], bytes=size)


def _sizes(outcome: Outcome) -> Tensor:
    """Something with one item a sample."""
    if outcome.bytes_S is not None:
        return outcome.bytes_S
    return torch.zeros(int(outcome.sample_N.max()) + 1)


def _interval(value: float, draws: list[float], level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
