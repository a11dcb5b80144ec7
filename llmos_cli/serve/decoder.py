"""The decoder: a Llama-like model's forward over a preallocated KV cache, for many requests at once.

Each request owns a row of the cache (a slot). New tokens of rows `first ... first + B - 1` are computed together, whether
that is one token for each of sixteen streams or a prompt's chunk: the shapes are the same, only L differs.

Shapes: B rows, L new positions of a row, S slots, T positions of a slot, W positions attended to (the window),
H key-value heads, G query heads that share one of them, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.models.kernels.coded import CodedEmbedding
from llmos_cli.serve import cache
from llmos_cli.serve.cache import KeysValues
from llmos_cli.serve.kernels import Matmul, matmul

WINDOW = 128
"""The window is a multiple of this: few distinct shapes, so that each can be compiled ahead."""

FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
"""transformers model types whose block is `norm, rotary attention, norm, gated MLP` and nothing else."""

MOVING_ROPES = {"dynamic", "longrope"}
"""Rotary encodings whose angles depend on the whole sequence's length, so that cached keys would be stale."""


class Decoder(Protocol):
    """What the engine needs of a model: rows of a cache that new tokens are appended to."""

    slots: int
    context: int
    vocabulary: int

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor:
        """Append tokens to rows `first...` and return logits, on the model's device; both tensors come on the CPU.

        `positions_BL` is where each token stands in its row, -1 for padding at a row's end (computed and thrown away).
        Returns `logits_BLV` in fp32 if `every`, else the logits after each row's last real token, `logits_BV`.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Copy a row of the cache over another."""
        ...


def obstacle(model: Any, context: int) -> str:
    """Why this decoder cannot serve `model`, empty when it can."""
    config = model.config
    if config.model_type not in FAMILIES:
        return f"its architecture is {config.model_type}"
    if config.rope_parameters["rope_type"] in MOVING_ROPES:
        return f"its rotary encoding is {config.rope_parameters['rope_type']}"
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
    sliding = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    if any(window is not None and window < context for window in [*windows, sliding]):
        return "its attention slides over a window shorter than the context"
    return ""


@dataclass(frozen=True)
class Layer:
    """One block's weights, ready to multiply."""

    attention_norm_E: Tensor
    query_key_value: Matmul
    query_norm_D: Tensor | None
    key_norm_D: Tensor | None
    output: Matmul
    mlp_norm_E: Tensor
    gate_up: Matmul
    down: Matmul


@dataclass(frozen=True)
class Place:
    """Where the tokens of one forward stand: the rows of the cache and the positions in them that they are written to, their
    rotation, and which positions of the window they see (M: queries of one key-value head, G x L)."""

    rows: slice
    row_B1: Tensor
    written_BL: Tensor
    cos_BL1D: Tensor
    sin_BL1D: Tensor
    seen_B1MW: Tensor


class LlamaDecoder:
    """Decodes with the weights of a transformers module, which may be dropped afterwards."""

    def __init__(self, model: Any, *, slots: int, context: int, kv_cache: str = "keep") -> None:
        config = model.config
        self.slots, self.context, self.vocabulary = slots, context, config.vocab_size
        self.head_size = model.model.layers[0].self_attn.head_dim
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.epsilon = config.rms_norm_eps
        self.activation: nn.Module = model.model.layers[0].mlp.act_fn

        self.embed = lookup(model.model.embed_tokens)
        self.layers = [layer_of(block, model.dtype) for block in model.model.layers]
        self.norm_E = model.model.norm.weight.detach()
        self.head = matmul(model.lm_head, dtype=model.dtype)
        self.cos_TD, self.sin_TD = rotary_tables(model.model.rotary_emb, self.norm_E, context + 1)
        self.offsets_T = torch.arange(context, device=self.norm_E.device)
        self.offsets_S = torch.arange(slots, device=self.norm_E.device)
        self.kv_cache = kv_cache
        self.caches = [self.cache() for _ in self.layers]

    @property
    def products(self) -> list[Matmul]:
        layers = [(layer.query_key_value, layer.output, layer.gate_up, layer.down) for layer in self.layers]
        return [*(product for layer in layers for product in layer), self.head]

    def cache(self) -> KeysValues:
        shape = (self.slots, self.kv_heads, self.context + 1, self.head_size)
        return cache.empty(shape, self.norm_E, self.kv_cache)

    @torch.inference_mode()
    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor:
        window = min(round_up(int(positions_BL.max()) + 1, WINDOW), self.context)
        tokens_BL, positions_BL = (device.move(given, self.norm_E.device) for given in (tokens_BL, positions_BL))
        hidden_BLE = self.hidden(tokens_BL, positions_BL, self.caches, first, window)
        if not every:
            hidden_BLE = last_real(hidden_BLE, positions_BL)
        return self.head(hidden_BLE).float()

    def hidden(
        self, tokens_BL: Tensor, positions_BL: Tensor, caches: Sequence[KeysValues], first: int, window: int
    ) -> Tensor:
        """Every block, then the final norm: `[B, L, E]`. Tensor work only, so that it compiles as one graph."""
        place = self.place(positions_BL, first, window)
        hidden_BLE = self.embed(tokens_BL)
        for layer, kept in zip(self.layers, caches, strict=True):
            query_BLND, key_BLHD, value_BLHD = self.project(layer, hidden_BLE, place)
            cache.write(kept, place.rows, place.row_B1, place.written_BL, key_BLHD, value_BLHD)
            mixed_BLE = self.attend(query_BLND, *cache.read(kept, place.rows, window), place.seen_B1MW)
            hidden_BLE = hidden_BLE + layer.output(mixed_BLE)
            gate_BLF, up_BLF = layer.gate_up(self.normalise(hidden_BLE, layer.mlp_norm_E)).chunk(2, dim=-1)
            hidden_BLE = hidden_BLE + layer.down(self.activation(gate_BLF) * up_BLF)
        return self.normalise(hidden_BLE, self.norm_E)

    def place(self, positions_BL: Tensor, first: int, window: int) -> Place:
        batch, length = positions_BL.shape
        written_BL = torch.where(positions_BL < 0, self.context, positions_BL)
        # Padding attends to position 0 rather than to nothing: a softmax over nothing is NaN.
        seen_B1LW = (self.offsets_T[:window] <= positions_BL.clamp(min=0)[:, :, None])[:, None]
        return Place(
            slice(first, first + batch),
            self.offsets_S[:batch, None],
            written_BL,
            self.cos_TD[written_BL][:, :, None],
            self.sin_TD[written_BL][:, :, None],
            seen_B1LW if length == 1 else seen_B1LW.repeat(1, 1, self.group, 1),
        )

    def project(self, layer: Layer, hidden_BLE: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both turned to their positions) and values: `[B, L, heads, D]` each."""
        batch, length, _ = hidden_BLE.shape
        turned = self.kv_heads * (self.group + 1)
        normed_BLE = self.normalise(hidden_BLE, layer.attention_norm_E)
        heads = layer.query_key_value(normed_BLE).view(batch, length, -1, self.head_size)
        both, value = heads[:, :, :turned], heads[:, :, turned:]
        if layer.query_norm_D is not None and layer.key_norm_D is not None:
            query, key = both.split([turned - self.kv_heads, self.kv_heads], dim=2)
            both = torch.cat([self.normalise(query, layer.query_norm_D), self.normalise(key, layer.key_norm_D)], dim=2)
        both = rotate(both, place.cos_BL1D, place.sin_BL1D)
        return both[:, :, : turned - self.kv_heads], both[:, :, turned - self.kv_heads :], value

    def attend(self, query_BLND: Tensor, keys_BHWD: Tensor, values_BHWD: Tensor, seen_B1MW: Tensor) -> Tensor:
        """Grouped-query attention without repeating keys: the G queries of a key-value head stand as G more positions."""
        batch, length, _, size = query_BLND.shape
        heads, group = self.kv_heads, self.group
        if length == 1:  # then heads lie as attention wants them, and nothing is copied
            query_BHGD = query_BLND.reshape(batch, heads, group, size)
            return F.scaled_dot_product_attention(query_BHGD, keys_BHWD, values_BHWD, attn_mask=seen_B1MW).reshape(
                batch, 1, -1
            )
        query_BHGLD = query_BLND.reshape(batch, length, heads, group, size).permute(0, 2, 3, 1, 4)
        query_BHMD = query_BHGLD.reshape(batch, heads, group * length, size)
        mixed_BHMD = F.scaled_dot_product_attention(query_BHMD, keys_BHWD, values_BHWD, attn_mask=seen_B1MW)
        mixed_BHGLD = mixed_BHMD.view(batch, heads, group, length, size)
        return mixed_BHGLD.permute(0, 3, 1, 2, 4).reshape(batch, length, -1)

    def normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.epsilon)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        for kept in self.caches:
            for rows_SHT in kept:
                if rows_SHT is not None:
                    rows_SHT[target].copy_(rows_SHT[source])


def lookup(embedding: nn.Module) -> Callable[[Tensor], Tensor]:
    """`[B, L]` to `[B, L, E]`: rows of a weight, or of codes."""
    if isinstance(embedding, CodedEmbedding):
        return embedding
    weight_VE: Tensor = embedding.get_parameter("weight").detach()
    return lambda tokens_BL: F.embedding(tokens_BL, weight_VE)


def layer_of(block: Any, dtype: torch.dtype) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        attention_norm_E=block.input_layernorm.weight.detach(),
        query_key_value=matmul(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype),
        query_norm_D=None if query_norm is None else query_norm.weight.detach(),
        key_norm_D=None if key_norm is None else key_norm.weight.detach(),
        output=matmul(attention.o_proj, dtype=dtype),
        mlp_norm_E=block.post_attention_layernorm.weight.detach(),
        gate_up=matmul(mlp.gate_proj, mlp.up_proj, dtype=dtype),
        down=matmul(mlp.down_proj, dtype=dtype),
    )


def rotary_tables(rotary: Any, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of positions `0 ... length - 1`, `[length, D]`, from the model's own module: any static scaling holds.

    transformers turns `x * cos + concat(-high, low) * sin`; with the sign in the table, `concat(high, low)` is a roll.
    """
    positions_1T = torch.arange(length, device=like.device)[None]
    with torch.no_grad():
        cos_1TD, sin_1TD = rotary(like[None, None], positions_1T)
    half = sin_1TD.shape[-1] // 2
    signed_TD = torch.cat([-sin_1TD[0, :, :half], sin_1TD[0, :, half:]], dim=-1)
    return cos_1TD[0].contiguous(), signed_TD


def rotate(heads_BLND: Tensor, cos_BL1D: Tensor, sin_BL1D: Tensor) -> Tensor:
    """Rotary position encoding (arXiv:2104.09864) in the half-split form."""
    rolled_BLND = heads_BLND.roll(heads_BLND.shape[-1] // 2, dims=-1)
    return heads_BLND * cos_BL1D + rolled_BLND * sin_BL1D


def write(cache_BHTD: Tensor, positions_BL: Tensor, new_BLHD: Tensor) -> None:
    rows_B1 = torch.arange(positions_BL.shape[0], device=positions_BL.device)[:, None]
    cache_BHTD[rows_B1, :, positions_BL] = new_BLHD


def last_real(hidden_BLE: Tensor, positions_BL: Tensor) -> Tensor:
    """The hidden state of each row's last token that is not padding, `[B, E]`."""
    last_B = (positions_BL >= 0).sum(1).clamp(min=1) - 1
    return hidden_BLE[torch.arange(len(last_B), device=last_B.device), last_B]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different lengths as one int64 tensor, padded at their ends."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
