"""Every training method: a file with an Options class, and an optimizer that minimises and decays what it should."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmos_cli import catalog
from llmos_cli.methods.parameters import Parameters, of_model
from llmos_cli.models.build import build
from llmos_cli.options.model import ModelOptions

METHODS = sorted(catalog.methods("train"))


def test_there_are_these_methods() -> None:
    assert METHODS == ["adafactor", "adam", "adamw", "muon", "sgd"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_brings_a_matrix_to_its_target(name: str) -> None:
    torch.manual_seed(0)
    weight, target = nn.Parameter(torch.randn(8, 8)), torch.randn(8, 8)
    method = catalog.method("train", name).load()
    optimizer = method.optimizer(
        Parameters([weight], [], [], []), method.Options(), learning_rate=0.2, weight_decay=0.0
    )
    first = (weight - target).square().mean().item()
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - step / 200)
        loss = (weight - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05 * first


@pytest.mark.parametrize("name", [name for name in METHODS if name != "adam"])
def test_decay_shrinks_matrices_and_heads_only(name: str) -> None:
    """With no gradient to follow, what shrinks is decayed. (Adam scales its decay like any gradient: not by this rule.)"""
    parts = [nn.Parameter(torch.ones(4, 4)) for _ in range(3)] + [nn.Parameter(torch.ones(4))]
    matrix, head, embedding, vector = parts
    method = catalog.method("train", name).load()
    optimizer = method.optimizer(
        Parameters([matrix], [head], [embedding], [vector]), method.Options(), learning_rate=0.1, weight_decay=0.1
    )
    for part in parts:
        part.grad = torch.zeros_like(part)
    optimizer.step()
    assert (matrix < 1).all() and (head < 1).all()
    assert (embedding == 1).all() and (vector == 1).all()


def parts_of(arch: str, task: str, **widths: int | bool) -> dict[str, set[str]]:
    facts = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "num_labels": 3,
             "id2label": dict(enumerate("abc")), "image_size": 8, "num_channels": 1, "max_position_embeddings": 16}  # fmt: skip
    model = build(ModelOptions(arch=arch, **widths), task, facts, seed=0)  # type: ignore[arg-type]
    parts = of_model(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        part: {names[id(p)] for p in getattr(parts, part)} for part in ("matrices", "heads", "embeddings", "vectors")
    }


def test_a_tied_head_counts_once_as_an_embedding() -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tied = parts_of("llama", "causal-lm", **small, tie_word_embeddings=True)
    apart = parts_of("llama", "causal-lm", **small, tie_word_embeddings=False)
    assert (tied["embeddings"], tied["heads"]) == ({"model.embed_tokens.weight"}, set())
    assert (apart["embeddings"], apart["heads"]) == ({"model.embed_tokens.weight"}, {"lm_head.weight"})
    assert len(tied["matrices"]) == 7 and all("proj" in name for name in tied["matrices"])
    assert all("norm" in name for name in tied["vectors"])


def test_a_classifier_keeps_its_last_layer_as_a_head() -> None:
    parts = parts_of("cnn", "image-classification")
    assert len(parts["heads"]) == 1
    assert parts["matrices"] and not parts["embeddings"]
