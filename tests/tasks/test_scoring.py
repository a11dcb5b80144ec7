from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given as with_any
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from llmos_cli import tasks
from llmos_cli.models.build import build
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks import classification, scoring
from llmos_cli.tasks.base import Outcome, Scored
from tests.tasks.conftest import ARCHS

LM, TEXT = tasks.load("causal-lm"), tasks.load("text-classification")


def outcome(labels, predicted, *, nll=None, confidence=None, samples=None, sizes=None, **extra):
    count = len(labels)
    return Outcome(
        nll_N=torch.tensor(nll or [1.0] * count),
        predicted_N=torch.tensor(predicted),
        labels_N=torch.tensor(labels),
        confidence_N=torch.tensor(confidence or [0.5] * count),
        sample_N=torch.tensor(samples or list(range(count))),
        bytes=sum(sizes or []),
        bytes_S=torch.tensor(sizes) if sizes else None,
        extra=extra,
    )


def scored(logits):
    return Scored(torch.tensor(logits), torch.zeros(len(logits), dtype=torch.long), torch.arange(len(logits)))


def test_kl_by_hand():
    teacher, student = scored([[math.log(3.0), 0.0], [0.0, 0.0]]), scored([[0.0, 0.0], [0.0, 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(scoring.kl(teacher, student), torch.tensor([by_hand, 0.0]))
    assert float(scoring.kl(teacher, student, temperature=2.0)[0]) < by_hand


def test_cross_entropy_by_hand():
    assert float(scoring.cross_entropy(scored([[math.log(3.0), 0.0]]))) == pytest.approx(-math.log(0.75))


def test_bits_per_byte_by_hand():
    metrics = LM.metrics(outcome([1, 2, 3], [1, 0, 0], nll=[math.log(2)] * 3, sizes=[4, 1, 1]), {})
    assert metrics["bits_per_byte"] == pytest.approx(3 / 6)
    assert metrics["perplexity"] == pytest.approx(2.0)
    assert metrics["accuracy"] == pytest.approx(1 / 3)


def test_accuracy_and_macro_f1_by_hand():
    metrics = TEXT.metrics(outcome([0, 0, 0, 1], [0, 0, 1, 1]), {"id2label": {0: "a", 1: "b"}})
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


@with_any(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_shares_are_scikit_learns_to_the_bit(rows):
    """Weighted as a resample is, classes that nothing is of or that count nowhere among them."""
    truth, guess, weight = map(list, zip(*rows, strict=True))
    if not sum(weight):
        return
    given = replace(outcome(truth, guess), weights_N=torch.tensor(weight))
    metrics, counts = classification.metrics(given), classification.Counts.of(given)
    kept = [at for at, times in enumerate(weight) if times]
    labels = sorted({truth[at] for at in kept} | {guess[at] for at in kept})
    asked = {"sample_weight": weight, "zero_division": 0.0}
    assert metrics["accuracy"] == accuracy_score(truth, guess, sample_weight=weight)
    assert metrics["macro_f1"] == f1_score(truth, guess, labels=labels, average="macro", **asked)
    rows = classification.per_class(given, {"id2label": {str(at): str(at) for at in range(5)}})
    theirs = precision_recall_fscore_support(truth, guess, labels=range(5), **asked)
    assert [(row.precision, row.recall, row.f1, row.support) for row in rows] == list(zip(*theirs, strict=True))
    others = [label for label in labels if label]
    assert counts.micro_f1(0) == (f1_score(truth, guess, labels=others, average="micro", **asked) if others else 0.0)


def test_calibration_error_by_hand():
    """Two of four right at confidence 0.9, all of two at 0.6: |0.5-0.9| * 4/6 + |1-0.6| * 2/6."""
    metrics = classification.metrics(outcome([0] * 6, [0, 0, 1, 1, 0, 0], confidence=[0.9] * 4 + [0.6] * 2))
    assert metrics["ece"] == pytest.approx(0.4 * 4 / 6 + 0.4 * 2 / 6)


def test_a_row_for_each_class():
    table = classification.per_class(outcome([0, 0, 1], [0, 1, 1]), {"id2label": {"0": "a", "1": "b", "2": "c"}})
    assert [(row.label, row.precision, row.recall, row.support) for row in table] == [
        ("a", 1.0, 0.5, 2), ("b", 0.5, 1.0, 1), ("c", 0.0, 0.0, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tags, expected",
    {
        "B-PER I-PER O": [("PER", 0, 2)],
        "B-PER B-PER": [("PER", 0, 1), ("PER", 1, 2)],
        "I-LOC I-LOC O I-ORG": [("LOC", 0, 2), ("ORG", 3, 4)],
        "B-PER I-LOC": [("PER", 0, 1), ("LOC", 1, 2)],
        "S-PER B-LOC I-LOC E-LOC": [("PER", 0, 1), ("LOC", 1, 4)],
        "O O": [],
    }.items(),
)
def test_entities_are_read_as_conlleval_does(tags, expected):
    assert list(classification.spans(tags.split())) == expected


def test_entity_f1_counts_whole_entities():
    names = ["O", "B-PER", "I-PER"]
    truth, guess = [1, 2, 0, 1, 0], [1, 0, 0, 1, 0]
    assert classification.looks_like_bio(names) and not classification.looks_like_bio(["noun", "verb"])
    assert classification.entity_f1(outcome(truth, guess, samples=[0, 0, 0, 1, 1]), names) == pytest.approx(0.5)


def test_intervals_hold_the_value_and_shrink_with_samples():
    def width(samples):
        labels = [0, 1] * samples
        guess = (
            [0, 0] + [0, 1] * (samples - 1)
            if samples < 4
            else [label if i % 4 else 1 - label for i, label in enumerate(labels)]
        )
        interval = scoring.intervals(
            TEXT, outcome(labels, guess), {"id2label": {0: "a", 1: "b"}}, seed=0, resamples=60
        )["accuracy"]
        assert interval.low <= interval.value <= interval.high
        return interval.high - interval.low

    assert width(20) > 2 * width(200) > 0


def test_whole_samples_are_drawn():
    """Positions of one sample come and go together: with two samples, all right or all wrong, a mean is 0, 1/2 or 1."""
    judged = outcome([0] * 6, [0, 0, 0, 1, 1, 1], samples=[0, 0, 0, 1, 1, 1], sizes=[3, 3])
    means = {
        round(draw.mean(draw.predicted_N == draw.labels_N), 6)
        for draw in scoring.resampled(judged, seed=0, resamples=50)
    }
    assert means == {0.0, 0.5, 1.0}
    assert {draw.bytes for draw in scoring.resampled(judged, seed=0, resamples=50)} == {6}


def test_paired_intervals_are_narrower_than_two_alone():
    generator = torch.Generator().manual_seed(0)
    base = (torch.rand(300, generator=generator) * 4).tolist()
    a = outcome([0] * 300, [0] * 300, nll=base, sizes=[2] * 300)
    b = outcome([0] * 300, [0] * 300, nll=[value + 0.1 for value in base], sizes=[2] * 300)
    difference = scoring.paired(LM, a, b, {}, seed=0)["loss"]
    alone = scoring.intervals(LM, a, {}, seed=0)["loss"]
    assert difference.low == pytest.approx(0.1, abs=1e-5) and difference.high == pytest.approx(0.1, abs=1e-5)
    assert alone.high - alone.low > 0.1
    ratio = scoring.paired(LM, a, b, {}, seed=0, compare=lambda base, other: other / base)["loss"]
    assert 1 < ratio.low <= ratio.value <= ratio.high < 1.1
    with pytest.raises(ValueError, match="same samples"):
        scoring.paired(LM, a, outcome([0], [0], sizes=[1]), {}, seed=0)


def test_the_same_seed_draws_the_same(case):
    task, prepared, model = case
    judged = scoring.evaluate(task, model, prepared.splits["validation"], batch_size=8, teacher=model)
    assert float(judged.extra["kl"].abs().max()) < 1e-6
    once, again = (scoring.intervals(task, judged, prepared.facts, seed=1, resamples=10) for _ in range(2))
    assert once == again and "kl" in once


def test_evaluation_never_holds_the_softmax_of_a_batch(case, monkeypatch):
    task, prepared, model = case
    split = prepared.splits["validation"]
    whole = scoring.evaluate(task, model, split, batch_size=8)
    monkeypatch.setattr(scoring, "CHUNK", 1)
    bits = scoring.evaluate(task, model, split, batch_size=8)
    torch.testing.assert_close(whole.nll_N, bits.nll_N)
    assert torch.equal(whole.predicted_N, bits.predicted_N)


def test_no_more_samples_go_through_at_once_than_whose_logits_fit(prepare, monkeypatch):
    prepared = prepare("causal-lm")
    model = build(ModelOptions(**ARCHS["causal-lm"]), "causal-lm", prepared.facts, seed=0)
    split, sizes = prepared.splits["validation"], []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    whole = scoring.evaluate(LM, model, split, batch_size=8)
    assert max(sizes) == 8 < len(split)
    one = model.get_output_embeddings().out_features * split.length
    for fit, most in ((3 * one, 3), (one // 2, 1)):
        monkeypatch.setattr(scoring, "LOGITS", fit)
        sizes.clear()
        torch.testing.assert_close(scoring.evaluate(LM, model, split, batch_size=8).nll_N, whole.nll_N)
        assert max(sizes) == most and sum(sizes) == len(split)
        sizes.clear()
        told = list(scoring.probabilities(LM, model, split, batch_size=8))
        assert max(sizes) == most and len(told) == len(sizes)
