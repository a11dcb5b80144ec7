"""What the three classifying tasks report: accuracy, macro F1, calibration, a row for each class.

Formulas are scikit-learn's, weighted by how often each position counts, and the results its own to the bit. They are counted here: an
interval asks for them hundreds of times, and the checks around its own take fifty times as long as the counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from llmos_cli.tasks import scoring
from llmos_cli.tasks.base import Outcome, Prediction, Split, Task
from llmos_cli.tasks.labels import names_of

BINS = 15
SHARES = frozenset({"accuracy", "macro_f1", "ece"})


def metrics(outcome: Outcome) -> dict[str, float]:
    """`accuracy`, `macro_f1` (over classes seen or predicted), `ece`, `loss` in nats, and the outcome's further columns."""
    counts = Counts.of(outcome)
    right_N = (outcome.predicted_N == outcome.labels_N).numpy()
    return {
        "accuracy": float(counts.right_C.sum() / counts.true_C.sum()),
        "macro_f1": counts.macro_f1(),
        "ece": calibration_error(outcome.confidence_N.double().numpy(), right_N, _weight(outcome)),
        "loss": outcome.mean(outcome.nll_N),
    } | {name: outcome.mean(column) for name, column in outcome.extra.items()}


@dataclass(frozen=True)
class Counts:
    """How often each class was guessed where it was true, was true, and was guessed."""

    right_C: NDArray[Any]
    true_C: NDArray[Any]
    guessed_C: NDArray[Any]

    @classmethod
    def of(cls, outcome: Outcome, classes: int = 0) -> Counts:
        """`classes`: at least so many."""
        truth, guess, weight = outcome.labels_N.numpy(), outcome.predicted_N.numpy(), _weight(outcome)
        classes, right = max(classes, int(max(truth.max(), guess.max())) + 1), truth == guess
        return cls(
            np.bincount(truth[right], weight[right], classes),
            np.bincount(truth, weight, classes),
            np.bincount(guess, weight, classes),
        )

    def f1(self) -> NDArray[Any]:
        return _share(2 * self.right_C, self.true_C + self.guessed_C)

    def macro_f1(self) -> float:
        """Over classes seen or predicted."""
        return float(np.mean(self.f1()[self.true_C + self.guessed_C > 0]))

    def micro_f1(self, nothing: int) -> float:
        """Over all classes but one; 0 where no other occurs."""
        right, all_ = (
            each.sum() - each[nothing : nothing + 1].sum() for each in (self.right_C, self.true_C + self.guessed_C)
        )
        return float(2 * right / all_) if all_ else 0.0


def _weight(outcome: Outcome) -> NDArray[Any]:
    return np.ones(len(outcome.labels_N)) if outcome.weights_N is None else outcome.weights_N.double().numpy()


def calibration_error(confidence: NDArray[Any], right: NDArray[Any], weight: NDArray[Any]) -> float:
    """Expected calibration error: how far confidence is from accuracy, in 15 equal bins (Guo et al., arXiv:1706.04599).

    NaN where a confidence is: the model's weights have run away.
    """
    if not np.isfinite(confidence).all():
        return float("nan")
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=weight * (confidence - right), minlength=BINS)
    return float(np.abs(gaps).sum() / weight.sum())


@dataclass(frozen=True)
class ClassRow:
    """How one class fares; `support` is how many positions are truly of it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class(outcome: Outcome, facts: Mapping[str, Any]) -> list[ClassRow]:
    """The table by class, in the order of the classes' numbers."""
    names = names_of(facts)
    counts = Counts.of(outcome, classes=len(names))
    precision, recall = _share(counts.right_C, counts.guessed_C), _share(counts.right_C, counts.true_C)
    columns = (names, precision, recall, counts.f1(), counts.true_C)
    return [ClassRow(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in zip(*columns, strict=True)]


def _share(part_C: NDArray[Any], whole_C: NDArray[Any]) -> NDArray[Any]:
    """0 where there is nothing to have a share of."""
    shares: NDArray[Any] = np.divide(part_C, whole_C, out=np.zeros(len(whole_C)), where=whole_C > 0)
    return shares


Span = tuple[str, int, int]
"""Kind, first word, first word after."""


def looks_like_bio(names: Sequence[str]) -> bool:
    """Tags such as B-PER, I-PER and O (IOBES too), which mark spans and not single words."""
    prefixes = {name.split("-", 1)[0] for name in names if "-" in name}
    return "B" in prefixes and prefixes <= set("BIESLU") and all("-" in name or name == "O" for name in names)


def spans(tags: Sequence[str]) -> Iterator[Span]:
    """Entities as conlleval reads them: one starts at B, S or U, or where the kind changes, and ends at O, E, S, L, U or the next start."""
    kind, start = "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        starts = prefix in "BSU" or name != kind
        if kind and (starts or tag == "O"):
            yield kind, start, place
            kind = ""
        if tag != "O" and starts:
            kind, start = name, place
        if kind and prefix in "ESLU":
            yield kind, start, place + 1
            kind = ""


def entity_f1(outcome: Outcome, names: Sequence[str]) -> float:
    """Micro F1 over entities that are right in kind and both ends; each sample counts as often as its words do."""
    found = Counter[str]()
    for weight, truth, guess in _sentences(outcome, names):
        right, guessed = set(spans(truth)), set(spans(guess))
        found["hit"] += weight * len(right & guessed)
        found["true"] += weight * len(right)
        found["guessed"] += weight * len(guessed)
    return 2 * found["hit"] / max(1, found["true"] + found["guessed"])


def _sentences(outcome: Outcome, names: Sequence[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """(how often it counts, true tags, predicted tags) of each sample."""
    truth, guess, weight = outcome.labels_N.numpy(), outcome.predicted_N.numpy(), _weight(outcome)
    cuts = np.flatnonzero(np.diff(outcome.sample_N.numpy())) + 1
    bounds = zip([0, *cuts], [*cuts, len(truth)], strict=True)
    for start, end in bounds:
        yield int(weight[start]), [names[i] for i in truth[start:end]], [names[i] for i in guess[start:end]]


def one_each(
    task: Task, model: nn.Module, split: Split, facts: Mapping[str, Any], *, batch_size: int
) -> list[Prediction]:
    """The class of each sample and the probabilities of all classes."""
    names = names_of(facts)
    return [
        Prediction(label=names[int(row_C.argmax())], probabilities=dict(zip(names, row_C.tolist(), strict=True)))
        for probabilities_BC, _ in scoring.probabilities(task, model, split, batch_size=batch_size)
        for row_C in probabilities_BC
    ]
