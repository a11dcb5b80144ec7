"""Tiny models of every kind, and rounding to nearest as the simplest way to codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.models import blocks
from llmos_cli.models.build import build
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from llmos_cli.options.model import ModelOptions

TRANSFORMER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
FACTS: dict[str, dict[str, Any]] = {
    "causal-lm": {"vocab_size": 300, "sequence_length": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
    "image-classification": {"image_size": 8, "num_channels": 1, "id2label": {i: str(i) for i in range(10)}},
    "text-classification": {
        "vocab_size": 300,
        "sequence_length": 32,
        "pad_token_id": 0,
        "id2label": {0: "a", 1: "b", 2: "c"},
    },
}
FACTS["token-classification"] = FACTS["text-classification"]
CASES = [
    ("llama", "causal-lm", TRANSFORMER),
    ("gpt2", "causal-lm", {"n_embd": 64, "n_layer": 2, "n_head": 2}),
    ("lstm", "causal-lm", {}),
    ("cnn", "image-classification", {}),
    ("mlp", "image-classification", {}),
    ("vit", "image-classification", TRANSFORMER),
    ("bert", "text-classification", TRANSFORMER),
    ("roberta", "text-classification", TRANSFORMER),
    ("eurobert", "text-classification", TRANSFORMER),
    ("lstm", "text-classification", {}),
    ("bag", "text-classification", {}),
    ("bert", "token-classification", TRANSFORMER),
    ("lstm", "token-classification", {"num_hidden_layers": 2}),
]


def make(arch: str, task: str, widths: dict[str, Any] | None = None, *, seed: int = 0) -> PreTrainedModel:
    default = TRANSFORMER if arch in ("llama", "bert", "eurobert", "vit") else {}
    options = ModelOptions(arch=arch, **(default if widths is None else widths))
    return build(options, task, FACTS[task], seed=seed).eval()


def batch(task: str, rows: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if task == "image-classification":
        return {"pixel_values": torch.rand(rows, 1, 8, 8, generator=generator)}
    ids = torch.randint(1, 300, (rows, 16), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: PreTrainedModel, task: str) -> Tensor:
    with torch.inference_mode():
        return model(**batch(task)).logits


def nearest(
    weight: Tensor, bits: int, group_size: int = -1, *, asymmetric: bool = False, dtype: torch.dtype = torch.float32
) -> Quantized:
    """The weight rounded to nearest, scales rounded to `dtype` first."""
    rows_OI = weight.detach().float().flatten(1)
    groups = 1 if group_size == -1 else rows_OI.shape[1] // group_size
    weight_OGg = rows_OI.unflatten(1, (groups, -1))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if asymmetric:
        smallest, largest = weight_OGg.amin(-1).clamp(max=0), weight_OGg.amax(-1).clamp(min=0)
        scales_OG = ((largest - smallest) / (high - low)).clamp_min(1e-8)
        zeros_OG = (low - smallest / scales_OG).round().clamp(low, high)
    else:
        scales_OG, zeros_OG = (weight_OGg.abs().amax(-1) / high).clamp_min(1e-8).to(dtype), None
    shift = 0 if zeros_OG is None else zeros_OG[..., None]
    codes = (weight_OGg / scales_OG[..., None].float() + shift).round().clamp(low, high).to(torch.int8)
    zeros = None if zeros_OG is None else zeros_OG.to(torch.int8)
    return Quantized(codes.reshape(weight.shape), scales_OG, bits, group_size, zeros)


def quantize_all(model: PreTrainedModel, of: Callable[[str, Tensor], Quantized]) -> dict[str, Quantized]:
    """Codes for every layer that can hold them; convolutions and LSTMs always int8 per channel."""
    codes: dict[str, Quantized] = {}
    for name, layer in blocks.layers(model).items():
        for part, weight in blocks.weights(layer).items():
            key = name if part == "weight" else f"{name}.{part}"
            codes[key] = nearest(weight, 8) if isinstance(layer, nn.Conv2d | nn.LSTM) else of(name, weight)
    return codes


def embedded(
    arch: str, task: str, directory: Path, scheme: Any = "weights", *, own_head: bool = False
) -> tuple[PreTrainedModel, Path]:
    """A model, and its checkpoint with codes in embeddings and head too."""
    model = make(arch, task, {**TRANSFORMER, "tie_word_embeddings": not own_head} if arch == "llama" else None)
    save(model, directory / "dense")
    bits, group = (8, -1) if scheme == "w8a8" else (4, 32)
    codes = quantize_all(model, lambda name, weight: nearest(weight, bits, group))
    table = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    codes[table] = nearest(model.get_submodule(table).get_parameter("weight"), 8, 32)
    if own_head:
        codes["lm_head"] = nearest(model.get_parameter("lm_head.weight"), 8, 32)
    write_quantized(directory / "quantized", directory / "dense", codes, scheme)
    return model, directory / "quantized"


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    return make("llama", "causal-lm")
