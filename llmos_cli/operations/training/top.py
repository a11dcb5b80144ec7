"""A teacher's top logits: the few classes that it gives most of its weight to, and how much is left for all the others.

They take a thousandth of the bytes of a language model's logits, so that they can be computed once and read from disk in
every later run. KL is then over these K classes and one bucket for the rest: cut off and renormalised instead, the student
would be told that nothing else ever comes. With K at the number of classes it is the exact KL.

Shapes: P positions, N of them scored, K top classes, C classes, S samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.core import atomic
from llmos_cli.core.sealed import TEACHERS
from llmos_cli.data import cache as store
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit, Progress
from llmos_cli.tasks.base import UNSCORED, Split
from llmos_cli.tasks.scoring import CHUNK, batches, forward

KIND = TEACHERS
BATCH = 16
"""Samples that the teacher is asked of at once."""
NOTHING = -1e30
"""The logarithm of no rest at all: finite, for infinity times zero is no number."""


class Top(NamedTuple):
    """Log-probabilities and numbers of the top classes, `[..., K]`, and the log-probability of all others together, `[...]`."""

    logp: Tensor
    ids: Tensor
    rest: Tensor


def top_of(logits_PC: Tensor, k: int, temperature: float) -> Top:
    """The top `k` classes, or all where there are no more, of the softmax at `temperature`."""
    logp_PC = (logits_PC.float() / temperature).log_softmax(-1)
    top = logp_PC.topk(min(k, logp_PC.shape[-1]), dim=-1)
    return Top(top.values, top.indices, _rest(logp_PC, top.indices))


def kl_to_top(top: Top, student_PC: Tensor) -> Tensor:
    """KL(teacher || student) over the top classes and the rest as one, [P]; `student_PC`: log-probabilities."""
    student_PK = student_PC.gather(-1, top.ids)
    kl_P = (top.logp.exp() * (top.logp - student_PK)).sum(-1)
    if top.ids.shape[-1] == student_PC.shape[-1]:
        return kl_P
    return kl_P + top.rest.exp() * (top.rest - _rest(student_PC, top.ids))


def _rest(logp_PC: Tensor, ids_PK: Tensor) -> Tensor:
    """Summed over the other classes, not subtracted from 1: of a sure teacher the difference is rounding alone."""
    if ids_PK.shape[-1] == logp_PC.shape[-1]:
        return torch.full_like(logp_PC[..., 0], NOTHING)
    return logp_PC.scatter(-1, ids_PK, -torch.inf).logsumexp(-1).clamp_min(NOTHING)


@dataclass(frozen=True)
class Cached:
    """What a teacher said of every sample of a split, mapped from disk: those of sample s are positions `starts[s]` to `starts[s+1]`."""

    logp_NK: NDArray[np.float32]
    ids_NK: NDArray[Any]
    rest_N: NDArray[np.float32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, rows: Sequence[int], labels: Tensor) -> Top:
        """For the samples `rows`, whose `labels` say which positions are scored; at the others it is nothing in particular."""
        parts = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        scored, k = labels != UNSCORED, self.logp_NK.shape[1]
        logp, ids = torch.zeros(*labels.shape, k), torch.zeros(*labels.shape, k, dtype=torch.int64)
        rest = torch.zeros(labels.shape)
        logp[scored] = torch.from_numpy(np.concatenate([self.logp_NK[part] for part in parts]))
        ids[scored] = torch.from_numpy(np.concatenate([self.ids_NK[part] for part in parts]).astype(np.int64))
        rest[scored] = torch.from_numpy(np.concatenate([self.rest_N[part] for part in parts]))
        return Top(logp, ids, rest)


def known(cache: Path, key: Any) -> bool:
    """Whether the teacher was asked this before."""
    return store.place(cache, KIND, key).is_dir()


def cached(
    cache: Path,
    key: Any,
    split: Split,
    teacher: Callable[[], nn.Module],
    *,
    classes: int,
    k: int,
    temperature: float,
    autocast: Callable[[], AbstractContextManager[Any]],
    emit: Emit,
) -> Cached:
    """The top `k` of each scored position of `split`, computed once for each `key`; `teacher` loads the model if it is needed.

    In memory there is one batch at a time, whatever the size of the split.
    """
    k = min(k, classes)
    dtypes = {"logp": "<f4", "ids": "<u2" if classes <= 2**16 else "<u4", "rest": "<f4", "scored": "<u4"}

    def build(directory: Path) -> None:
        store.write(directory, dtypes, _asked(teacher(), split, k, temperature, autocast, emit))
        for file in directory.iterdir():  # named by what it was made from, so it must be whole even after a power cut
            atomic.sync_file(file)

    return _opened(store.entry(cache, KIND, key, build), k, samples=len(split))


def _opened(place: Path, k: int, *, samples: int) -> Cached:
    try:
        read = store.columns(place)
        starts = np.concatenate([[0], np.cumsum(read["scored"], dtype=np.int64)])
        found = Cached(read["logp"].reshape(-1, k), read["ids"].reshape(-1, k), read["rest"], starts)
        if len(found) != samples or not starts[-1] == len(found.rest_N) == len(found.logp_NK) == len(found.ids_NK):
            raise ValueError("lengths differ")
    except (ValueError, KeyError, OSError) as problem:
        raise Corrupt(
            f"the teacher's logits in {place} cannot be read", hint="remove that folder: they are computed again"
        ) from problem
    return found


def _asked(
    model: nn.Module,
    split: Split,
    k: int,
    temperature: float,
    autocast: Callable[[], AbstractContextManager[Any]],
    emit: Emit,
) -> Iterator[dict[str, Any]]:
    """The columns of the cache, piece by piece; the teacher sees each sample once, in order."""
    model.eval()
    on, started, samples = next(model.parameters()).device, time.monotonic(), len(split)
    for rows in batches(samples, BATCH):
        batch = split.batch(rows)
        scored = batch["labels"] != UNSCORED
        with torch.inference_mode(), autocast():
            logits_NC = forward(model, device.move(batch, on))[scored]
            tops = [top_of(part, k, temperature) for part in logits_NC.split(max(1, CHUNK // logits_NC.shape[-1]))]
        top = Top(*(torch.cat(parts).cpu() for parts in zip(*tops, strict=True)))
        yield {**top._asdict(), "scored": scored.view(len(scored), -1).sum(1)}
        elapsed = time.monotonic() - started
        rate = rows.stop / max(elapsed, 1e-9)
        emit(
            Progress(
                "teacher", rows.stop, samples, unit="sample", rate=rate, rate_unit="samples", elapsed=elapsed,
                eta=(samples - rows.stop) / rate,
            )
        )  # fmt: skip
