"""What llama.cpp calls the architectures it runs here, what it wants to be told of each, and where it computes in another order.

The names of tensors are the `gguf` package's own. Beyond them an architecture differs in whether it rotates neighbouring features (then
the rows of queries and keys, of which transformers rotates halves, are reordered), whether its norms are stored with their 1 added, and
in a few numbers of its own. What llama.cpp takes for granted of an architecture is checked here: a file that it would run as another
model is not written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmos_cli.errors import UsageError

Settings = Callable[[Any, Any], None]
"""Writer, config: what this architecture is told beyond what all are."""
Trouble = Callable[[Any], str | None]
"""Config: what of it llama.cpp would take otherwise; None where nothing."""


def _nothing(writer: Any, config: Any) -> None:
    pass


@dataclass(frozen=True)
class Architecture:
    """`neighbours`: rotates features (2i, 2i + 1); `plus_one`: norms are stored as weight + 1; `transformers`: its reader, which is
    not ours, reads the file back."""

    name: str
    neighbours: bool = False
    plus_one: bool = False
    activation: str = "silu"
    transformers: bool = False
    frequencies: bool = False
    settings: Settings = _nothing
    trouble: Trouble = lambda config: None


def of(config: PreTrainedConfig) -> Architecture:
    """The architecture of a model. UsageError where llama.cpp has none that computes the same."""
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise UsageError(
            f"GGUF export knows {', '.join(ARCHITECTURES)}, not {config.model_type}",
            hint="export --format hf, and convert that with llama.cpp's convert_hf_to_gguf.py",
        )
    if trouble := found.trouble(config) or _common(config, found):
        raise UsageError(
            f"llama.cpp runs {config.model_type} otherwise than this model: {trouble}",
            hint="export --format hf, for readers of that",
        )
    return found


def write_settings(writer: Any, architecture: Architecture, config: Any) -> None:
    head = head_size(config)
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    writer.add_context_length(min(context, window) if window and config.model_type == "mistral" else context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    architecture.settings(writer, config)


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by, [head / 2]; None where it is 1."""
    rope = _rope(config)
    if rope["rope_type"] == "default":
        return None
    slower, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    half = len(slower)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(half).float() / half)
    factors: Tensor = plain / slower
    return factors


def _rope(config: Any) -> dict[str, Any]:
    """Of the layers that see everything, where layers differ."""
    rope = config.rope_parameters
    found: dict[str, Any] = rope.get("full_attention", rope)
    return found


def _common(config: Any, architecture: Architecture) -> str | None:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != architecture.activation:
        return f"its activation is {activation}"
    rope = _rope(config)
    allowed = ("default", "linear", "llama3") if architecture.frequencies else ("default",)
    if rope.get("rope_type", "default") not in allowed:
        return f"its rotary positions are {rope['rope_type']}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "a part of each head is rotated"
    windowed = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return "layers see a window" if windowed and not config.model_type.startswith("gemma") else None


def _unscaled(config: Any) -> str | None:
    """llama.cpp scales queries by the size of a head (but for the two largest models)."""
    if config.query_pre_attn_scalar != head_size(config):
        return f"queries are scaled by {config.query_pre_attn_scalar}, not by their {head_size(config)} features"
    return None


def _windows(config: Any, every: int) -> str | None:
    """llama.cpp lets each `every`th layer see everything, the others a window."""
    pattern = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(len(config.layer_types))
    ]
    return None if config.layer_types == pattern else f"not every {every}th layer alone sees everything"


def _gemma2_trouble(config: Any) -> str | None:
    return _unscaled(config) or _windows(config, 2)


def _gemma2(writer: Any, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3_trouble(config: Any) -> str | None:
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        return "logits are capped"
    if config.use_bidirectional_attention:
        return "it looks ahead"
    local = config.rope_parameters["sliding_attention"]
    if local.get("rope_type", "default") != "default" or local["rope_theta"] != 10_000.0:
        return "windows are rotated otherwise"
    return _unscaled(config) or _windows(config, 6)


def _gemma3(writer: Any, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


def _granite(writer: Any, config: Any) -> None:
    writer.add_logit_scale(config.logits_scaling)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_attention_scale(config.attention_multiplier)


def _smollm3_trouble(config: Any) -> str | None:
    unrotated = [index for index, rotated in enumerate(config.no_rope_layers) if not rotated]
    fourth = [index for index in range(config.num_hidden_layers) if (index + 1) % 4 == 0]
    return None if unrotated == fourth else "not each fourth layer alone is without rotary positions"


def _olmo2_trouble(config: Any) -> str | None:
    return "its head is its embedding" if config.tie_word_embeddings else None


GELU = "gelu_pytorch_tanh"
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", neighbours=True, transformers=True, frequencies=True),
    "mistral": Architecture("llama", neighbours=True, transformers=True, frequencies=True),
    "qwen2": Architecture("qwen2", transformers=True),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", plus_one=True, activation=GELU),
    "gemma2": Architecture("gemma2", plus_one=True, activation=GELU, settings=_gemma2, trouble=_gemma2_trouble),
    "gemma3_text": Architecture("gemma3", plus_one=True, activation=GELU, settings=_gemma3, trouble=_gemma3_trouble),
    "granite": Architecture("granite", neighbours=True, settings=_granite),
    "smollm3": Architecture("smollm3", neighbours=True, trouble=_smollm3_trouble),
    "olmo2": Architecture("olmo2", trouble=_olmo2_trouble),
}
