"""Whether a sample to calibrate on shares content with what evaluation looks at: for text, a run of tokens; else the whole sample.

A run of 2 * RUN - 1 equal tokens is always found, one of RUN where it stands as evaluation cut it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from llmos_cli.operations.proof import PROOF_SPLITS
from llmos_cli.tasks.base import Batch, Prepared, Split

RUN = 32
"""Tokens: longer than what two texts have in common by chance or by idiom."""
BATCH = 16


def held_out(prepared: Prepared) -> set[bytes]:
    """The content of all samples that a result may be judged on."""
    splits = (prepared.splits[name] for name in PROOF_SPLITS if name in prepared.splits)
    return {piece for split in splits for sample in _samples(split, range(len(split))) for piece in pieces(sample, RUN)}


def disjoint(split: Split, rows: Sequence[int], held: set[bytes], wanted: int) -> tuple[list[int], int]:
    """The first `wanted` of `rows` that share nothing with `held`, and how many were passed over."""
    chosen: list[int] = []
    for seen, sample in enumerate(_samples(split, rows)):
        if len(chosen) == wanted:
            return chosen, seen - wanted
        if held.isdisjoint(pieces(sample, 1)):
            chosen.append(rows[seen])
    return chosen, len(rows) - len(chosen)


def pieces(sample: Tensor, step: int) -> Iterator[bytes]:
    """Every `step`-th run of a row of tokens; the whole of a shorter row, or of anything else."""
    whole = sample.dim() != 1 or len(sample) < RUN
    starts = [0] if whole else range(0, len(sample) - RUN + 1, step)
    for start in starts:
        yield (sample if whole else sample[start : start + RUN]).contiguous().numpy().tobytes()


def _samples(split: Split, rows: Sequence[int]) -> Iterator[Tensor]:
    """What the model is given of each row, padding left out."""
    for start in range(0, len(rows), BATCH):
        batch = split.batch(rows[start : start + BATCH])
        yield from _rows(batch)


def _rows(batch: Batch) -> Iterator[Tensor]:
    if "input_ids" not in batch:
        yield from batch["pixel_values"]
        return
    mask = batch.get("attention_mask")
    for row, ids_L in enumerate(batch["input_ids"]):
        yield ids_L if mask is None else ids_L[mask[row].bool()]
