"""A narrower residual stream: channels that nothing writes to go from every tensor, and the logits stay, in plain transformers too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaConfig

from llmos_cli.models.load import load
from llmos_cli.models.narrow import is_accepted
from llmos_cli.models.residual import allowed, channels, thinned, thinner
from llmos_cli.models.save import save
from llmos_cli.models.stream import Unfit
from tests.models.conftest import batch
from tests.models.test_channels import PLAIN, SHARED, logits_of, model_of

CUT: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "causal-lm", {**SHARED, "tie_word_embeddings": True}),
    ("llama", "causal-lm", {**PLAIN, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    ("mistral", "causal-lm", SHARED),
    ("qwen2", "causal-lm", {**SHARED, "head_dim": None}),
    ("qwen3", "causal-lm", SHARED),
    ("phi3", "causal-lm", {**PLAIN, "num_attention_heads": 6, "num_key_value_heads": 2}),
    ("eurobert", "token-classification", PLAIN),
]


@pytest.mark.parametrize(("arch", "task", "sizes"), CUT, ids=[f"{case[0]}-{case[1]}" for case in CUT])
def test_channels_that_nothing_writes_to_go_and_the_logits_stay(
    arch: str, task: str, sizes: dict[str, Any], tmp_path: Any
) -> None:
    model = model_of(arch, task, sizes)
    found = channels(model, batch(task))
    kept_D = torch.randperm(48, generator=torch.Generator().manual_seed(3)) < 36
    smaller = thinned(model, found, kept_D)
    assert not torch.allclose(logits_of(smaller, task), logits_of(model, task), atol=1e-2)

    deaf = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in deaf.named_parameters():
            if name.endswith(
                ("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")
            ):
                parameter[(..., ~kept_D) if "embed" in name else ~kept_D] = 0
    torch.testing.assert_close(
        logits_of(smaller, task), logits_of(deaf, task), rtol=1e-3, atol=1e-3
    )  # a norm adds its epsilon to another mean

    save(smaller, tmp_path)
    torch.testing.assert_close(logits_of(load(tmp_path), task), logits_of(smaller, task), rtol=1e-5, atol=1e-5)
    stock = {"causal-lm": AutoModelForCausalLM, "token-classification": AutoModelForTokenClassification}[task]
    plain = stock.from_pretrained(tmp_path).eval()
    assert plain.config.hidden_size == 36
    torch.testing.assert_close(logits_of(plain, task), logits_of(smaller, task), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "task", "sizes", "reason"),
    [
        ("gpt2", "causal-lm", {"n_embd": 48, "n_layer": 3, "n_head": 3}, "subtract the mean"),
        ("bert", "text-classification", PLAIN, "its norms write to the residual stream"),
        ("gemma", "causal-lm", SHARED, "something besides its norms"),  # it multiplies by the root of the width
        ("mixtral", "causal-lm", SHARED, "has a width that its configuration ties|works on the channels"),
        ("lstm", "causal-lm", {}, "no residual stream"),
    ],
)
def test_what_has_no_width_of_its_own_says_why(arch: str, task: str, sizes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit, match=reason):
        channels(model_of(arch, task, sizes), batch(task))


def test_the_width_is_a_multiple_that_the_configuration_accepts() -> None:
    config = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    for wanted in range(100, 560, 20):
        found = allowed(config, wanted, 32)
        assert is_accepted(thinner(config, found)) and found % 9 == 0 and abs(found - wanted) <= 18
    assert allowed(config, 290, 32) == 288
    assert thinner(config, 504).head_dim == 64
    assert allowed(LlamaConfig(hidden_size=256, num_attention_heads=4), 200, 16) == 192
