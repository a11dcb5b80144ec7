"""Hidden states compared: which layers, by which distance, and whom it is refused to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_cli.errors import UsageError
from llmos_cli.models.build import build
from llmos_cli.operations.training.hidden import Matching, evenly, matching
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks.base import Batch

LM = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "max_position_embeddings": 16}
TEXTS = {"vocab_size": 20, "pad_token_id": 0, "max_position_embeddings": 16, "num_labels": 3, "id2label": dict(enumerate("abc"))}  # fmt: skip
IMAGES = {"image_size": 8, "num_channels": 1, "num_labels": 3, "id2label": dict(enumerate("abc"))}


def test_layers_are_spaced_evenly_from_the_embeddings_to_the_last() -> None:
    assert evenly(2, 4) == [(0, 0), (1, 2), (2, 4)]
    assert evenly(4, 6) == [(0, 0), (1, 2), (2, 3), (3, 5), (4, 6)]
    assert evenly(3, 2) == [(0, 0), (1, 1), (2, 1), (3, 2)]


def slowly(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """The squared distance of unit vectors, number by number, averaged over positions."""
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        long_a, long_b = math.hypot(*a), math.hypot(*b)
        total += sum((x / long_a - y / long_b) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(ours)


def states(count: int, width: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 3, width) for _ in range(count))


def test_the_distance_is_that_of_directions_over_what_is_real() -> None:
    torch.manual_seed(0)
    ours, theirs = states(2, 4), states(2, 4)
    compared = Matching([(0, 0), (1, 3)], [(4, 4), (4, 4)], seed=0)
    assert compared.taught == (0, 3) and not list(compared.parameters())

    masked: Batch = {"labels": torch.tensor([1, 2]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    real = [(0, 3), (1, 1)]
    of_texts = sum(slowly(a[b, :n].tolist(), t[b, :n].tolist()) for b, n in real for a, t in zip(ours, theirs, strict=True)) / 2  # fmt: skip
    assert compared(ours, theirs, masked).item() == pytest.approx(of_texts, rel=1e-5)

    tokens: Batch = {"labels": torch.tensor([[1, 2, 3], [4, -100, -100]])}
    of_tokens = sum(n * slowly(a[b, :n].tolist(), t[b, :n].tolist()) for b, n in real for a, t in zip(ours, theirs, strict=True)) / 2  # fmt: skip
    assert compared(ours, theirs, tokens).item() == pytest.approx(of_tokens, rel=1e-5)
    assert compared(tuple(7 * state for state in ours), theirs, tokens).item() == pytest.approx(of_tokens, rel=1e-5)
    assert compared(ours, ours, tokens).item() == pytest.approx(0, abs=1e-6)


def test_a_projection_brings_the_student_to_the_teachers_width() -> None:
    torch.manual_seed(0)
    ours, batch = states(1, 4), {"labels": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    compared = Matching([(0, 0)], [(4, 6)], seed=0)
    (projection_ED,) = compared.parameters()
    theirs = (ours[0] @ projection_ED.T,)
    assert compared(ours, theirs, batch).item() == pytest.approx(0, abs=1e-6)
    again = Matching([(0, 0)], [(4, 6)], seed=0).state_dict()
    assert torch.equal(again["projections.0"], projection_ED)
    compared(ours, states(1, 6), batch).backward()
    assert projection_ED.grad is not None and projection_ED.grad.abs().sum() > 0


def model(arch: str, task: str, facts: dict[str, Any], **widths: Any) -> nn.Module:
    return build(ModelOptions(arch=arch, **widths), task, facts, seed=0)


def transformer(arch: str, task: str, facts: dict[str, Any], layers: int, hidden: int) -> nn.Module:
    return model(arch, task, facts, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2)


IDS = {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}
TEXT = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64), "labels": torch.tensor([1])}  # fmt: skip
IMAGE = {"pixel_values": torch.randn(1, 1, 8, 8), "labels": torch.tensor([1])}


@pytest.mark.parametrize(
    ("arch", "task", "facts", "batch"),
    [
        ("llama", "causal-lm", LM, IDS),
        ("gpt2", "causal-lm", LM, IDS),
        ("bert", "text-classification", TEXTS, TEXT),
        ("vit", "image-classification", IMAGES, IMAGE),
    ],
)
def test_models_of_transformers_are_matched(arch: str, task: str, facts: dict[str, Any], batch: Batch) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    student, teacher = transformer(arch, task, facts, 2, 32), transformer(arch, task, facts, 4, 48)
    torch.set_rng_state(before)
    found = matching(student.train(), teacher, batch, seed=0)
    assert found.pairs == ((0, 0), (1, 2), (2, 4))
    assert [tuple(projection.shape) for projection in found.parameters()] == [(48, 32)] * 3
    assert student.training and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arch", "task", "facts", "batch"),
    [
        ("cnn", "image-classification", IMAGES, IMAGE),
        ("mlp", "image-classification", IMAGES, IMAGE),
        ("lstm", "causal-lm", LM, IDS),
    ],
)
def test_a_model_that_tells_no_hidden_states_is_refused(
    arch: str, task: str, facts: dict[str, Any], batch: Batch
) -> None:
    with pytest.raises(UsageError, match=rf"The model \({arch}\) tells no hidden states") as refused:
        matching(model(arch, task, facts), model(arch, task, facts), batch, seed=0)
    assert "train.hidden_weight" in refused.value.hint


def test_positions_that_are_not_the_same_cannot_be_compared() -> None:
    student, teacher = (
        model("vit", "image-classification", IMAGES, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=size)
        for size in (2, 4)
    )  # fmt: skip
    with pytest.raises(UsageError, match="17 positions where its teacher has 5"):
        matching(student, teacher, IMAGE, seed=0)
