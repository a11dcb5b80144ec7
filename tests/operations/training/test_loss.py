"""The training loss against the slow way: position by position."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmos_cli.operations.training import loss
from llmos_cli.operations.training.loss import Loss, Taught
from llmos_cli.operations.training.top import top_of
from llmos_cli.options.verbs import TrainOptions
from llmos_cli.tasks.base import Batch


class Given(nn.Module):
    """A model whose logits are its input."""

    def forward(self, logits: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    return {"logits": torch.randn(2, 3, 4), "labels": torch.tensor([[1, -100, 3], [0, 2, -100]])}


def scored(batch: Batch) -> list[tuple[list[float], int]]:
    rows = zip(batch["logits"].flatten(0, 1).tolist(), batch["labels"].flatten().tolist(), strict=True)
    return [(row, label) for row, label in rows if label != -100]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_cross_entropy_adds_up_the_scored_positions(batch: Batch) -> None:
    expected = -sum(math.log(softmax(row)[label]) for row, label in scored(batch))
    assert Loss(0.0, 0.0, 1.0)(Given(), batch, None).item() == pytest.approx(expected, rel=1e-5)
    assert loss.scored(batch) == 4


def test_smoothing_gives_every_class_a_share(batch: Batch) -> None:
    def smoothed(row: list[float], label: int) -> float:
        return -sum(math.log(p) * (0.9 * (c == label) + 0.1 / 4) for c, p in enumerate(softmax(row)))

    expected = sum(smoothed(row, label) for row, label in scored(batch))
    assert Loss(0.1, 0.0, 1.0)(Given(), batch, None).item() == pytest.approx(expected, rel=1e-5)


def test_kl_to_a_teacher_and_its_share(batch: Batch) -> None:
    teacher = torch.randn(2, 3, 4)
    taught = {**batch, "logits": teacher}
    kl = sum(
        p * math.log(p / q)
        for (ours, _), (theirs, _) in zip(scored(batch), scored(taught), strict=True)
        for p, q in zip(softmax(theirs, 2.0), softmax(ours, 2.0), strict=True)
    )
    entropy = Loss(0.0, 0.0, 1.0)(Given(), batch, None).item()
    told = Taught(teacher)
    assert Loss(0.0, 1.0, 2.0)(Given(), batch, told).item() == pytest.approx(4 * kl, rel=1e-4)
    assert Loss(0.0, 0.25, 2.0)(Given(), batch, told).item() == pytest.approx(kl + 0.75 * entropy, rel=1e-4)
    assert Loss(0.0, 1.0, 2.0)(Given(), batch, Taught(batch["logits"])).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kl_to_the_top_has_one_bucket_for_the_rest(batch: Batch, k: int) -> None:
    teacher = torch.randn(2, 3, 4)
    kl = 0.0
    for (ours, _), (theirs, _) in zip(scored(batch), scored({**batch, "logits": teacher}), strict=True):
        p, q = softmax(theirs, 2.0), softmax(ours, 2.0)
        best = sorted(range(4), key=lambda c: -p[c])[:k]
        buckets = [(p[c], q[c]) for c in best] + [(1 - sum(p[c] for c in best), 1 - sum(q[c] for c in best))]
        kl += sum(a * math.log(a / b) for a, b in buckets)
    told = Taught(top=top_of(teacher, k, 2.0))
    assert Loss(0.0, 1.0, 2.0)(Given(), batch, told).item() == pytest.approx(4 * kl, rel=1e-4)


@pytest.mark.parametrize("k", [4, 5])
def test_the_top_of_all_classes_is_the_exact_kl(batch: Batch, k: int) -> None:
    teacher = torch.randn(2, 3, 4)
    whole, top = (
        gradient_of(Loss(0.1, 0.5, 3.0), batch, told) for told in (Taught(teacher), Taught(top=top_of(teacher, k, 3.0)))
    )
    torch.testing.assert_close(top, whole)


def gradient_of(loss: Loss, batch: Batch, told: Taught) -> Tensor:
    logits = batch["logits"].clone().requires_grad_()
    loss(Given(), {**batch, "logits": logits}, told).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return logits.grad


def test_of_a_teacher_that_is_sure_nothing_becomes_infinite(batch: Batch) -> None:
    sure = 1e4 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [3, 0, 1]]), 4).float()
    told = Taught(top=top_of(sure, 2, 1.0))
    assert gradient_of(Loss(0.0, 1.0, 1.0), {**batch, "logits": sure.flip(-1)}, told).isfinite().all()
    assert gradient_of(Loss(0.0, 1.0, 1.0), {**batch, "logits": sure}, told).abs().max() < 1e-6


def test_classes_of_whole_samples_are_positions_too() -> None:
    one = {"logits": torch.tensor([[2.0, 0.0]]), "labels": torch.tensor([0])}
    assert Loss(0.0, 0.0, 1.0)(Given(), one, None).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_options_speak_of_a_teacher_only_where_there_is_one() -> None:
    options = TrainOptions(teacher_weight=0.7, temperature=3.0, label_smoothing=0.1, hidden_weight=0.2)
    assert loss.of(options, taught=False) == Loss(0.1, 0.0, 1.0)
    assert options.unread() == ["hidden_weight", "teacher_weight", "temperature"]
    assert loss.of(options, taught=True) == Loss(0.1, 0.7, 3.0, 0.2)


def test_it_computes_where_the_logits_are() -> None:
    with FakeTensorMode():
        there = {
            "logits": torch.empty(2, 3, 4, device="cuda"),
            "labels": torch.empty(2, 3, device="cuda", dtype=torch.int64),
        }
        teacher = torch.empty(2, 3, 4, device="cuda")
        for told in (Taught(teacher), Taught(top=top_of(teacher, 2, 2.0))):
            assert Loss(0.1, 0.5, 2.0)(Given(), there, told).device.type == "cuda"
