"""Decoding: milliseconds for one more token of one stream (median, fastest), and new tokens per second of many streams, of language models.

The model is as a deployment holds it, and decoded by what a deployment would decode it with, before any shape is compiled. Half
of a sample is in the cache when the token is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from llmos_cli.methods.eval import Decoder, Subject
from llmos_cli.methods.turns import Pass, durations, percentile

UNITS = {"token_latency": "ms", "token_latency_best": "ms", "token_throughput": "/s"}
TIMED = True


def measure(subject: Subject) -> dict[str, float]:
    return compare([subject])[0]


def compare(subjects: Sequence[Subject]) -> list[dict[str, float]]:
    """The numbers of each, measured in turns; none of models that are not decoded."""
    if any(subject.decoding is None for subject in subjects):
        return [{} for _ in subjects]
    on = subjects[0].model.device
    decoders = [subject.decoding() for subject in subjects if subject.decoding is not None]
    samples = [subject.split.batch(subject.rows)["input_ids"] for subject in subjects]
    one = durations([[step(decoder, sample[:1])] for decoder, sample in zip(decoders, samples, strict=True)], on)
    many = durations([[step(decoder, sample)] for decoder, sample in zip(decoders, samples, strict=True)], on)
    return [
        {
            "token_latency": 1000 * percentile(single, 0.50),
            "token_latency_best": 1000 * min(single),
            "token_throughput": len(sample) / percentile(together, 0.50),
        }
        for single, together, sample in zip(one, many, samples, strict=True)
    ]


def step(decoder: Decoder, tokens_BL: Tensor) -> Pass:
    """What computes the token after the first half of each row: the same one every time, for it is written to the same place."""
    half = tokens_BL.shape[1] // 2
    if half:
        positions_BL = torch.arange(half).repeat(len(tokens_BL), 1)
        decoder.forward(tokens_BL[:, :half], positions_BL, 0, every=False)
    next_B1, at_B1 = tokens_BL[:, half : half + 1], torch.full((len(tokens_BL), 1), half)
    return partial(decoder.forward, next_B1, at_B1, 0, every=False)
