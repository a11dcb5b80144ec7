"""A checkpoint as a deployment would hold it, and how fast it answers: by itself for `eval`, beside its parent for a proof and for
`compress`.

Language models are in the arithmetic that is fastest here and decoded by the server's own decoder; layers of codes are multiplied as
codes; classifiers answer in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llmos_cli import catalog, device
from llmos_cli.events import Emit, Progress
from llmos_cli.methods.eval import Decoder, Subject
from llmos_cli.methods.eval.decoding import step
from llmos_cli.methods.turns import Pass
from llmos_cli.models.dequantize import is_quantized
from llmos_cli.models.kernels import coded
from llmos_cli.models.load import load_config
from llmos_cli.serve import backend
from llmos_cli.tasks.base import Split, Task
from llmos_cli.tasks.scoring import forward

NOISE = 1.05
"""What differs by less than this is called as fast."""


@dataclass(frozen=True)
class Speed:
    """What parent (`before`) and result (`after`) were measured to do, in turns: metric -> value, in the units of `methods/eval`; the
    throughputs and the memory are of `together` samples at once. `headline`: the metric that a user waits for."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    headline: str
    together: int

    @property
    def gain(self) -> float:
        """How many times faster the result answers one request."""
        return self.before[self.headline] / self.after[self.headline]

    @property
    def faster(self) -> bool:
        return self.gain > NOISE

    @property
    def slower(self) -> bool:
        return self.gain < 1 / NOISE


def headline(task: Task) -> str:
    """One more token of a language model, a whole sample of a classifier; milliseconds at batch 1, of the fastest pass: a busy machine
    only ever makes one slower."""
    return "token_latency_best" if task.name == "causal-lm" else "latency_best"


def beside(
    task: Task, parent: Path, result: Path, split: Split, *, batch_size: int, waited_for: bool = False, emit: Emit
) -> Speed:
    """Two checkpoint directories of one task, measured in turns; `waited_for`: only by what gives the headline."""
    subjects = [_decoded(task, Subject(_loaded(task, path), split, path, batch_size, 0)) for path in (parent, result)]
    only = headline(task) if waited_for else None
    before, after = measured(subjects, only=only, stage="time parent and result", emit=emit)
    return Speed(before, after, headline(task), len(subjects[0].rows))


def answering(task: Task, model: PreTrainedModel, split: Split) -> Pass:
    """What a user waits for, on the first sample: one more token of a language model, a whole sample of a classifier."""
    subject = _decoded(task, Subject(model, split, Path(), 1, 0))
    if subject.decoding is None:
        return partial(forward, model, subject.batch([0]))
    return step(subject.decoding(), split.batch([0])["input_ids"])


def arithmetic(task: Task) -> torch.dtype:
    """In which a model is served."""
    return device.compute_dtype(device.pick()) if task.name == "causal-lm" else torch.float32


def served(task: Task, subject: Subject, *, kv_cache: str = "keep") -> Subject:
    """The subject with its model as it would be served; the one that it has, where that is so already."""
    if subject.model.dtype != arithmetic(task) or is_quantized(load_config(subject.path)):
        subject = replace(subject, model=_loaded(task, subject.path))
    return _decoded(task, subject, kv_cache)


def _loaded(task: Task, path: Path) -> PreTrainedModel:
    return coded.load(path, dtype=arithmetic(task), device=device.pick())


def _decoded(task: Task, subject: Subject, kv_cache: str = "keep") -> Subject:
    return replace(subject, decoding=partial(_decoder, subject, kv_cache)) if task.name == "causal-lm" else subject


def _decoder(subject: Subject, kv_cache: str) -> Decoder:
    """As a deployment has it for as many streams as the subject has rows, with room for a sample, eager."""
    context = subject.split.batch([0])["input_ids"].shape[1]
    built = backend.build(subject.model, slots=len(subject.rows), context=context, warm="off", kv_cache=kv_cache)
    return built.decoder


def measured(subjects: Sequence[Subject], *, only: str | None = None, stage: str, emit: Emit) -> list[dict[str, float]]:
    """What all measurements that are timed say of each, or the one that gives the metric `only`."""
    found: list[dict[str, float]] = [{} for _ in subjects]
    modules = [
        module for _, module in measurements(timed=True) if module.TIMED and (only is None or only in module.UNITS)
    ]
    for done, module in enumerate(modules, 1):
        emit(Progress(stage, done, len(modules), unit="measurement"))
        for one, numbers in zip(found, module.compare(subjects), strict=True):
            one |= numbers
    return found


def measurements(*, timed: bool) -> Iterator[tuple[str, Any]]:
    """Name and module of each file of `methods/eval`."""
    for name, method in catalog.methods("eval").items():
        module = method.load()
        if timed or not module.TIMED:
            yield name, module
