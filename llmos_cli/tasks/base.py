"""What every task is: positions to be classified.

A next token, a label of a text, a tag of a word and a digit of an image are all one thing: a row of logits and the
right class. So training loss, distillation, KL between two checkpoints, perplexity and accuracy are written once, over
`Scored`, and a task file only says how its data becomes batches and which numbers its users expect.

Shapes: B samples, L positions in a sample, N scored positions, C classes, S samples in all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from llmos_cli.errors import UsageError
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions

Batch = dict[str, Tensor]
"""Keyword arguments of the model's forward, plus `labels` (int64, -100 where nothing is scored), which stand where the
logits that they judge stand: a language model's are shifted already. Never pass them to the model, which would shift again."""

UNSCORED = -100


class Split(Protocol):
    """Samples that can be batched: `len(split)` of them.

    A split whose samples differ in length has `lengths` too, a number a sample: training then batches like with like.
    """

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """Samples `rows` as one batch on the CPU; the same rows and seed give the same bits."""
        ...

    def bytes(self, rows: Sequence[int]) -> int:
        """UTF-8 bytes of text that the scored positions of `rows` stand for; 0 where it has no meaning."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A data source made ready for one model.

    `facts` are the configuration keys that the data decides (vocab_size, num_labels, id2label, image_size...);
    `fingerprint` says exactly which data it was (JSON values); `processor` is what the checkpoint keeps beside its weights
    (a tokenizer; None where the configuration says it all); `notes` are sentences that the user should see.
    """

    splits: Mapping[str, Split]
    facts: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    processor: Any = None
    notes: tuple[str, ...] = ()

    def rows(self, split: str) -> str:
        """Which rows a split is of, as SHA-256; "" where the data does not say."""
        return str(self.fingerprint.get("splits", {}).get(split, {}).get("sha256", ""))


@dataclass(frozen=True)
class Scored:
    """Logits of the scored positions and their classes; `sample_N` is the row of the batch each belongs to."""

    logits_NC: Tensor
    labels_N: Tensor
    sample_N: Tensor


@dataclass
class Outcome:
    """What an evaluation keeps of every scored position, on the CPU: enough for any metric and its interval."""

    nll_N: Tensor
    predicted_N: Tensor
    labels_N: Tensor
    confidence_N: Tensor
    sample_N: Tensor
    """Global index of the sample (the unit that is resampled for intervals)."""
    bytes: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Further per-position columns, such as `kl` to another checkpoint."""
    bytes_S: Tensor | None = None
    """UTF-8 bytes of each sample; `bytes` is their sum."""
    weights_N: Tensor | None = None
    """How often each position counts (a resample's multiplicities); once when None."""

    def mean(self, column_N: Tensor) -> float:
        """Average of a column over the positions, as often as each counts."""
        values = column_N.double()
        if self.weights_N is None:
            return float(values.mean())
        return float((values * self.weights_N).sum() / self.weights_N.sum())

    def positions(self) -> float:
        """How many positions count."""
        return float(len(self.nll_N)) if self.weights_N is None else float(self.weights_N.sum())


@dataclass(frozen=True)
class Prediction:
    """What a model says of one row, as JSON values: `probabilities` by class, `tags` for each word, `scores` of a text."""

    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    confidences: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


class Task:
    """Base of the four tasks; `TASK` in each task's file is its only instance."""

    name: ClassVar[str]
    architecture: ClassVar[str]
    """Suffix of the transformers class: `ForCausalLM`..."""
    metric: ClassVar[str]
    lower_is_better: ClassVar[bool]
    shares: ClassVar[frozenset[str]]
    """Metrics that are shares of something, from 0 to 1."""
    columns: ClassVar[tuple[str, ...]]
    """Canonical names of the columns it learns from: the input, then what is to be predicted (if it is a column)."""
    default_dtype: ClassVar[torch.dtype] = torch.float32

    def prepare(
        self,
        data: DataOptions,
        model: ModelOptions,
        *,
        seed: int,
        cache: Path,
        processor: Path | None = None,
        relabel: bool = False,
    ) -> Prepared:
        """Load, split, tokenise and index `data`.

        `processor`: a checkpoint directory whose tokenizer and labels must be used; with `relabel` its tokenizer alone (a
        new head for new classes). Relative paths are those of the workspace that `cache` (`.llmos/cache`) lies in.
        """
        raise NotImplementedError

    def scored(self, logits: Tensor, batch: Batch) -> Scored:
        """Pick the positions that count out of the model's logits ([B, L, C] or [B, C])."""
        labels = batch["labels"]
        counts = labels != UNSCORED
        if bool(counts.all()):  # a view: picking by mask would copy all logits, and their gradient
            samples = torch.arange(len(labels), device=labels.device).repeat_interleave(labels[0].numel())
            return Scored(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), samples)
        return Scored(logits[counts], labels[counts], counts.nonzero()[:, 0])

    def metrics(self, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, float]:
        """The task's numbers, its `metric` among them; `facts` are those of `prepare` or the checkpoint's config.json."""
        raise NotImplementedError

    def metric_names(self) -> list[str]:
        """By what `metrics` says of one right answer; of classes named so that every metric applies."""
        zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1)
        outcome = Outcome(nll_N=one, predicted_N=zero, labels_N=zero, confidence_N=one, sample_N=zero, bytes=1)
        return list(self.metrics(outcome, {"id2label": {0: "O", 1: "B-X", 2: "I-X"}}))

    def load_processor(self, directory: Path) -> Any:
        """What `inputs` and `predict` need beside the weights, from a checkpoint directory."""
        raise NotImplementedError

    def inputs(self, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any) -> Split:
        """Rows without labels (texts, lists of words, images) as a split to predict on; `facts` as in `metrics`."""
        raise NotImplementedError

    def predict(
        self, model: nn.Module, rows: Sequence[Any], facts: Mapping[str, Any], processor: Any, *, batch_size: int
    ) -> list[Prediction]:
        """What the model says of each row, by the code that evaluates it."""
        raise NotImplementedError


def expect(rows: Sequence[Any], fits: Callable[[Any], bool], what: str) -> None:
    """Inputs come from outside: the first that is not `what` is an error that names its place."""
    for place, row in enumerate(rows, start=1):
        if not fits(row):
            raise UsageError(f"input {place} is not {what}", hint=f"This model takes {what} for each input.")
