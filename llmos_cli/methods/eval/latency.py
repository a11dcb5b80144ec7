"""Latency and throughput: milliseconds to answer one sample (median and 95th percentile), and answers per second in batches.

A language model's answer to a sequence is one pass over it, so its throughput counts tokens read per second, as a token
classifier's does; a classifier's counts samples. How fast new tokens are decoded is for a deployment to say. The model is as a
deployment holds it: language models in the arithmetic that is fastest on the machine, quantized layers as codes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from llmos_cli import device
from llmos_cli.methods.eval import Subject
from llmos_cli.tasks.base import Batch
from llmos_cli.tasks.scoring import forward

UNITS = {"latency_p50": "ms", "latency_p95": "ms", "throughput": "/s"}
TIMED = True

WARM, LEAST, MOST = 2, 5, 200
"""Passes before the clock counts, and the bounds on those that count."""
SECONDS = 1.5
"""Budget of each of the two series."""


def measure(subject: Subject) -> dict[str, float]:
    singles = [subject.batch([row]) for row in subject.rows]
    whole = subject.batch(subject.rows)
    latency = _durations(subject, singles)
    return {
        "latency_p50": 1000 * percentile(latency, 0.50),
        "latency_p95": 1000 * percentile(latency, 0.95),
        "throughput": _answers(whole) / percentile(_durations(subject, [whole]), 0.50),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a `share` of `values` lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _durations(subject: Subject, batches: Sequence[Batch]) -> list[float]:
    """Seconds of passes over `batches`, taken in turn."""
    with torch.inference_mode():
        for turn in range(WARM):
            forward(subject.model, batches[turn % len(batches)])
        seconds: list[float] = []
        while len(seconds) < LEAST or (len(seconds) < MOST and sum(seconds) < SECONDS):
            seconds.append(_timed(subject, batches[len(seconds) % len(batches)]))
    return seconds


def _timed(subject: Subject, batch: Batch) -> float:
    start = time.perf_counter()
    forward(subject.model, batch)
    device.synchronize(subject.model.device)
    return time.perf_counter() - start


def _answers(batch: Batch) -> int:
    return int((batch["labels"] != -100).sum())
