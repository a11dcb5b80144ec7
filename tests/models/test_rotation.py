"""Rotations: orthogonal matrices of every order, and models of every kind that answer as before once they are turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from llmos_cli.models.hadamard import fixing_the_mean, hadamard, largest, orthogonal
from llmos_cli.models.load import load
from llmos_cli.models.rotation import Written, holds, write
from llmos_cli.models.save import save
from llmos_cli.models.shelf import Shelf
from llmos_cli.models.stream import Stream, Unfit, carried, find
from tests.models.conftest import batch
from tests.models.test_channels import PLAIN, SHARED, logits_of, model_of

WIDE = {**PLAIN, "num_hidden_layers": 4}
TIED = {**SHARED, "tie_word_embeddings": True}
UNTIED = {**SHARED, "tie_word_embeddings": False}
TURNED: list[tuple[str, str, dict[str, Any], bool, int]] = [
    ("llama", "causal-lm", TIED, True, 3),
    ("llama", "causal-lm", {**UNTIED, "num_hidden_layers": 4}, False, 4),
    ("llama", "causal-lm", {**WIDE, "attention_bias": True, "mlp_bias": True}, True, 4),
    ("llama", "causal-lm", {**PLAIN, "hidden_size": 42, "num_attention_heads": 3, "head_dim": 14}, True, 3),
    ("mistral", "causal-lm", UNTIED, False, 3),
    ("qwen2", "causal-lm", {**SHARED, "head_dim": None}, True, 3),
    ("qwen3", "causal-lm", SHARED, True, 3),
    ("gemma", "causal-lm", TIED, True, 3),
    ("phi3", "causal-lm", {**PLAIN, "num_attention_heads": 6, "num_key_value_heads": 2}, True, 3),
    ("gpt2", "causal-lm", {"n_embd": 48, "n_layer": 3, "n_head": 3}, True, 3),
    (
        "opt",
        "causal-lm",
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 40},
        True,
        2,
    ),
    ("eurobert", "token-classification", PLAIN, False, 3),
    ("eurobert", "text-classification", PLAIN, False, 3),
    ("vit", "image-classification", PLAIN, False, 3),
]
"""Architecture, task, sizes, whether its head is tied, and how many of its blocks turn their values."""
REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("bert", "text-classification", PLAIN, "its norms write to the residual stream"),
    ("gemma2", "causal-lm", SHARED, "its norms write to the residual stream"),
    ("modernbert", "token-classification", PLAIN, "its norms write to the residual stream"),
    ("cnn", "image-classification", {"channels": [5, 8]}, "it has no residual stream"),
    ("lstm", "causal-lm", {"hidden_size": 12, "embedding_size": 16}, "it has no residual stream"),
]


@given(st.integers(1, 90), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_rotations_are_orthogonal_whatever_the_order(order: int, seed: int) -> None:
    turn_DD = orthogonal(order, seed)
    assert torch.allclose(turn_DD @ turn_DD.T, torch.eye(order).double(), atol=1e-10)
    kept_DD = fixing_the_mean(turn_DD)
    assert torch.allclose(kept_DD @ kept_DD.T, torch.eye(order).double(), atol=1e-10)
    assert torch.allclose(kept_DD.sum(0), torch.ones(order).double(), atol=1e-9)
    assert torch.equal(turn_DD, orthogonal(order, seed))


@pytest.mark.parametrize("order", [2, 4, 12, 20, 24, 28, 36, 60, 64, 144, 384, 576, 768, 896])
def test_a_hadamard_matrix_holds_ones_alone_and_its_rows_are_orthogonal(order: int) -> None:
    assert largest(order) == order
    found = hadamard(order)
    assert torch.equal(found.abs(), torch.ones(order, order).double())
    assert torch.equal(found @ found.T, order * torch.eye(order).double())


@pytest.mark.parametrize(("order", "nearest"), [(1, 1), (7, 1), (10, 2), (18, 2), (100, 20), (50, 2)])
def test_what_no_construction_reaches_is_left_to_chance(order: int, nearest: int) -> None:
    assert largest(order) == nearest


def test_paleys_matrix_of_order_four_by_hand() -> None:
    """q = 3: the squares modulo 3 are {1}."""
    assert hadamard(12).shape == (12, 12)
    assert torch.equal(hadamard(4), torch.kron(hadamard(2), hadamard(2)))


def turned(model: PreTrainedModel, task: str, folder: Path, *, whole: bool = True) -> tuple[Stream, Written]:
    """Saved and turned, block by block, into `folder`/turned."""
    save(model, folder / "dense")
    shelf = Shelf(folder / "dense", torch.device("cpu"))
    small, found = find(shelf.model, batch(task), whole=whole)
    assert holds(small, found, batch(task), 5, 1e-3)
    stream = carried(found, small, shelf.model)
    return stream, write(shelf, folder / "turned", stream, 5)


@pytest.mark.parametrize(
    ("arch", "task", "sizes", "tied", "heads"), TURNED, ids=[f"{case[0]}-{n}" for n, case in enumerate(TURNED)]
)
def test_a_turned_model_answers_as_before(
    arch: str, task: str, sizes: dict[str, Any], tied: bool, heads: int, tmp_path: Path
) -> None:
    model = model_of(arch, task, sizes)
    stream, written = turned(model, task, tmp_path)
    again = load(tmp_path / "turned")
    before, after = logits_of(model, task), logits_of(again, task)
    assert (before - after).abs().max() <= 2e-4 * before.abs().max()
    assert bool(written.untied) == tied
    values = [name for name, place in stream.heads.items() if name.endswith("weight")]
    assert len(values) == 2 * heads
    state = model.state_dict()
    changed = [name for name, value in again.state_dict().items() if not torch.equal(value, state[name])]
    assert len(changed) >= len(state) / 2


def test_equal_scales_keep_a_tied_head_tied(tmp_path: Path) -> None:
    model = model_of("llama", "causal-lm", TIED)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.5)
    _, written = turned(model, "causal-lm", tmp_path)
    again = load(tmp_path / "turned")
    assert written == Written() and again.config.tie_word_embeddings
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.allclose(logits_of(model, "causal-lm"), logits_of(again, "causal-lm"), atol=1e-4)


def test_heads_alone_leave_the_stream(tmp_path: Path) -> None:
    model = model_of("llama", "causal-lm", TIED)
    stream, written = turned(model, "causal-lm", tmp_path, whole=False)
    assert not stream.along and not stream.norms and not written.untied
    again, state = load(tmp_path / "turned").state_dict(), model.state_dict()
    changed = {name for name, value in again.items() if not torch.equal(value, state[name])}
    assert changed == {f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(3) for part in "vo"}


def test_an_outlier_is_spread(tmp_path: Path) -> None:
    """One channel of the stream a hundred times as large as the others: turned, no weight stands out."""
    model = model_of("llama", "causal-lm", UNTIED)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[7] *= 100
    turned(model, "causal-lm", tmp_path)

    def peak(model: PreTrainedModel) -> float:
        weight = model.model.layers[0].mlp.down_proj.weight.detach()
        return float(weight.abs().max() / weight.square().mean().sqrt())

    assert peak(load(tmp_path / "turned")) < 0.5 * peak(model)


@pytest.mark.parametrize(("arch", "task", "sizes", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_turned_says_why(arch: str, task: str, sizes: dict[str, Any], reason: str) -> None:
    model = model_of(arch, task, sizes)
    with pytest.raises(Unfit, match=reason):
        find(model, batch(task), whole=True)


def test_a_scale_of_nothing_under_a_bias_is_refused(tmp_path: Path) -> None:
    model = model_of("gpt2", "causal-lm", {"n_embd": 48, "n_layer": 2, "n_head": 3})
    with torch.no_grad():
        model.transformer.h[1].ln_1.weight[3] = 0
    with pytest.raises(Unfit, match=r"transformer.h.1.ln_1 scales a channel by nothing"):
        turned(model, "causal-lm", tmp_path)
