"""Which tensors go together in a narrower model: what is cut was unread, so the logits stay, whatever the architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models.build import build
from llmos_cli.models.channels import deafen, widths
from llmos_cli.models.load import load
from llmos_cli.models.narrow import Kept, Width, built, configured, is_accepted, narrowed, with_values
from llmos_cli.models.save import save
from llmos_cli.models.shallow import shortened
from llmos_cli.options.model import ModelOptions
from tests.models.conftest import FACTS, batch

PLAIN = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
SHARED = {**PLAIN, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
HEADS = ["intermediate_size", "num_key_value_heads"]
CASES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("llama", "causal-lm", SHARED, [*HEADS, "queries"]),
    ("llama", "causal-lm", {**PLAIN, "attention_bias": True, "mlp_bias": True}, HEADS),
    ("mistral", "causal-lm", SHARED, [*HEADS, "queries"]),
    ("qwen2", "causal-lm", {**SHARED, "head_dim": None}, [*HEADS, "queries"]),
    ("qwen3", "causal-lm", SHARED, [*HEADS, "queries"]),
    ("gemma2", "causal-lm", SHARED, [*HEADS, "queries"]),
    ("phi3", "causal-lm", {**PLAIN, "num_attention_heads": 6, "num_key_value_heads": 2}, HEADS),
    ("gpt2", "causal-lm", {"n_embd": 48, "n_layer": 3, "n_head": 3}, ["n_inner"]),
    ("opt", "causal-lm", {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 40}, ["ffn_dim"]),
    ("bert", "text-classification", PLAIN, ["intermediate_size"]),
    ("distilbert", "text-classification", {"dim": 48, "n_layers": 2, "n_heads": 3, "hidden_dim": 40}, ["hidden_dim"]),
    ("modernbert", "token-classification", PLAIN, ["intermediate_size"]),
    ("eurobert", "token-classification", PLAIN, HEADS),
    ("vit", "image-classification", PLAIN, HEADS),
    ("cnn", "image-classification", {"channels": [5, 8, 12]}, ["channels[0]", "channels[1]", "channels[2]"]),
    ("mlp", "image-classification", {"hidden_size": 20, "num_hidden_layers": 3}, ["hidden_size"]),
    ("lstm", "causal-lm", {"hidden_size": 12, "embedding_size": 16, "num_hidden_layers": 2}, ["hidden_size"]),
    ("lstm", "text-classification", {"hidden_size": 12, "num_hidden_layers": 2}, ["hidden_size"]),
    ("lstm", "token-classification", {"hidden_size": 12, "bidirectional": False}, ["hidden_size"]),
]  # fmt: skip


def model_of(arch: str, task: str, sizes: dict[str, Any]) -> PreTrainedModel:
    """With biases and norms that are not what they are at birth."""
    sizes = {key: value for key, value in sizes.items() if value is not None}
    model = build(ModelOptions(arch=arch, **sizes), task, FACTS[task], seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model


def some(found: list[Width]) -> Kept:
    """Of each group other units, about two thirds of them."""
    generator = torch.Generator().manual_seed(2)
    return {
        width: {
            group: torch.randperm(width.units, generator=generator) < max(1, 2 * width.units // 3)
            for group in width.groups
        }
        for width in found
    }


def logits_of(model: PreTrainedModel, task: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch(task)).logits
    return found


@pytest.mark.parametrize(("arch", "task", "sizes", "names"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_units_that_nothing_reads_go_and_the_logits_stay(
    arch: str, task: str, sizes: dict[str, Any], names: list[str], tmp_path: Any
) -> None:
    model = model_of(arch, task, sizes)
    found, _ = widths(model, batch(task))
    assert [width.name for width in found] == names
    kept = some(found)
    smaller = narrowed(model, kept)
    assert not torch.allclose(logits_of(smaller, task), logits_of(model, task), atol=1e-2)

    deaf = copy.deepcopy(model)
    for groups in kept.values():
        deafen(deaf, groups)
    torch.testing.assert_close(logits_of(smaller, task), logits_of(deaf, task), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())

    save(smaller, tmp_path)
    torch.testing.assert_close(logits_of(load(tmp_path), task), logits_of(smaller, task), rtol=1e-5, atol=1e-5)


def test_heads_and_their_queries_multiply_in_the_configuration() -> None:
    model = model_of("llama", "causal-lm", SHARED)
    found, _ = widths(model, batch("causal-lm"))
    assert [(width.name, width.units, len(width.groups)) for width in found] == [
        ("intermediate_size", 40, 3),
        ("num_key_value_heads", 2, 3),
        ("queries", 3, 6),
    ]
    config = configured(model.config, {found[1]: 1, found[2]: 2})
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 8)
    assert is_accepted(config)
    assert not is_accepted(configured(with_values(model.config, {"hidden_size": 49}), {found[2]: 1}))


@pytest.mark.parametrize(
    ("arch", "task", "sizes", "name", "reason"),
    [
        ("olmo2", "causal-lm", {**SHARED, "head_dim": None}, "num_key_value_heads", "ties its units together"),
        ("mixtral", "causal-lm", SHARED, "intermediate_size", "experts.gate_up_proj belongs to a MixtralExperts"),
        ("bert", "text-classification", PLAIN, "num_key_value_heads", "allows no other"),
        ("gpt_neox", "causal-lm", PLAIN, "num_key_value_heads", "no tensor's shape follows it"),
        ("bag", "text-classification", {}, "hidden_size", "the width of the embeddings"),
        ("llama", "causal-lm", {**SHARED, "num_key_value_heads": 1}, "num_key_value_heads", "there is only 1"),
    ],
)
def test_what_cannot_be_cut_says_why(arch: str, task: str, sizes: dict[str, Any], name: str, reason: str) -> None:
    found, refused = widths(model_of(arch, task, sizes), batch(task))
    assert name not in {width.name for width in found}
    assert reason in refused[name], refused


def test_tensors_of_another_shape_than_the_configuration_are_refused() -> None:
    model = model_of("mlp", "image-classification", {"hidden_size": 8})
    state = {**model.state_dict(), "classifier.weight": torch.zeros(10, 5)}
    with pytest.raises(LlmosError, match=r"classifier.weight was cut to \(10, 5\), but a mlp .* makes it \(10, 8\)"):
        built(type(model), model.config, state, torch.device("cpu"))


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gpt2", "eurobert", "vit"])
def test_blocks_that_add_nothing_go_and_the_logits_stay(arch: str, tmp_path: Any) -> None:
    task = {"eurobert": "text-classification", "vit": "image-classification"}.get(arch, "causal-lm")
    sizes = {"n_embd": 48, "n_layer": 3, "n_head": 3} if arch == "gpt2" else PLAIN
    model = model_of(arch, task, sizes)
    with torch.no_grad():
        for name, module in model.named_modules():
            if ".1." in name and isinstance(module, nn.Module):
                for parameter in module.parameters(recurse=False):
                    parameter.zero_()
    smaller = shortened(model, [0, 2])
    torch.testing.assert_close(logits_of(smaller, task), logits_of(model, task))
    save(smaller, tmp_path)
    torch.testing.assert_close(logits_of(load(tmp_path), task), logits_of(smaller, task))


def test_a_chain_without_a_count_of_blocks_cannot_lose_one() -> None:
    with pytest.raises(UsageError, match="does not say how many blocks"):
        shortened(model_of("cnn", "image-classification", {}), [0, 2])
