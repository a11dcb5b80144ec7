"""Latency and throughput: milliseconds to answer one sample (median, 95th percentile, fastest), and answers per second in batches.

The fastest pass is what a busy machine disturbs least: two models are compared by it.

A language model's answer to a sequence is one pass over it, so its throughput counts tokens read per second, as a token
classifier's does; a classifier's counts samples. How fast new tokens come is in `decoding`. The model is as a deployment holds
it: language models in the arithmetic that is fastest on the machine, quantized layers as codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmos_cli.methods.eval import Subject
from llmos_cli.methods.turns import durations, percentile
from llmos_cli.tasks.base import Batch
from llmos_cli.tasks.scoring import forward

UNITS = {"latency_p50": "ms", "latency_p95": "ms", "latency_best": "ms", "throughput": "/s"}
TIMED = True


def measure(subject: Subject) -> dict[str, float]:
    return compare([subject])[0]


def compare(subjects: Sequence[Subject]) -> list[dict[str, float]]:
    """The numbers of each, measured in turns."""
    on = subjects[0].model.device
    singles = [[partial(forward, subject.model, subject.batch([row])) for row in subject.rows] for subject in subjects]
    wholes = [subject.batch(subject.rows) for subject in subjects]
    each = durations(singles, on)
    together = durations(
        [[partial(forward, subject.model, whole)] for subject, whole in zip(subjects, wholes, strict=True)], on
    )
    return [
        {
            "latency_p50": 1000 * percentile(single, 0.50),
            "latency_p95": 1000 * percentile(single, 0.95),
            "latency_best": 1000 * min(single),
            "throughput": _answers(whole) / percentile(batched, 0.50),
        }
        for single, batched, whole in zip(each, together, wholes, strict=True)
    ]


def _answers(batch: Batch) -> int:
    return int((batch["labels"] != -100).sum())
