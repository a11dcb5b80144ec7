"""Decoding of any causal language model through its own transformers forward: slower than `decoder.py`, same interface.

Attention models get a cache of slots behind transformers' cache interface, so that requests join and leave between steps.
Models without such a cache (recurrent ones, ours, sliding windows) compute each row's tokens anew at every step.

Shapes: as in `decoder.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from llmos_cli import device
from llmos_cli.serve.decoder import WINDOW, last_real, round_up, write


class RecomputingDecoder:
    """Keeps each row's tokens and computes all of them at every step: quadratic, and right for every causal model.

    Rows are padded at their ends, which a causal model cannot see.
    """

    def __init__(self, model: Any, *, slots: int, context: int) -> None:
        self.model = model
        self.slots, self.context, self.vocabulary = slots, context, model.config.vocab_size
        self.tokens_ST = torch.zeros(slots, context + 1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor:
        length = int(positions_BL.max()) + 1
        on = self.tokens_ST.device
        tokens_BL, positions_BL = device.move(tokens_BL, on), device.move(positions_BL, on)
        rows_B1 = first + torch.arange(tokens_BL.shape[0], device=on)[:, None]
        self.tokens_ST[rows_B1, positions_BL.where(positions_BL >= 0, self.context)] = tokens_BL
        logits_BTV: Tensor = self.model(input_ids=self.tokens_ST[rows_B1[:, 0], :length]).logits
        logits_BLV = logits_BTV[rows_B1 - first, positions_BL.clamp(min=0)]
        return (logits_BLV if every else last_real(logits_BLV, positions_BL)).float()

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        self.tokens_ST[target] = self.tokens_ST[source]


class SlotLayer(CacheLayerMixin):
    """One layer's keys and values, `[S, H, T + 1, D]`, written at the places that the forward under way says."""

    keys: Tensor
    values: Tensor

    def __init__(self, step: Step) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = step

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, length = self.step.slots, self.step.context + 1
        self.keys = key_states.new_zeros(slots, key_states.shape[1], length, key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], length, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, window = slice(self.step.first, self.step.first + key_states.shape[0]), self.step.window
        write(self.keys[rows], self.step.written_BL, key_states.transpose(1, 2))
        write(self.values[rows], self.step.written_BL, value_states.transpose(1, 2))
        return self.keys[rows, :, :window], self.values[rows, :, :window]

    def get_mask_sizes(self, *args: Any) -> tuple[int, int]:
        return self.step.window, 0

    def get_seq_length(self) -> int:
        return self.step.window

    def get_max_length(self) -> int:
        return self.step.context


class Step:
    """Where the forward under way writes: rows from `first`, positions `written_BL`, seeing positions below `window`."""

    def __init__(self, slots: int, context: int) -> None:
        self.slots, self.context = slots, context
        self.first = self.window = 0
        self.written_BL = torch.zeros(0, 0, dtype=torch.long)


class SlotDecoder:
    """An attention model's own forward over a cache of slots."""

    def __init__(self, model: Any, *, slots: int, context: int) -> None:
        self.model = model
        self.slots, self.context, self.vocabulary = slots, context, model.config.vocab_size
        self.step = Step(slots, context)
        self.layers = [SlotLayer(self.step) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=[*self.layers])

    @torch.inference_mode()
    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor:
        self.step.first = first
        self.step.window = min(round_up(int(positions_BL.max()) + 1, WINDOW), self.context)
        on = self.model.device
        tokens_BL, positions_BL = device.move(tokens_BL, on), device.move(positions_BL, on)
        self.step.written_BL = positions_BL.where(positions_BL >= 0, self.context)
        real_BL = positions_BL.clamp(min=0)
        seen_B1LW = (torch.arange(self.step.window, device=on) <= real_BL[:, :, None])[:, None]
        output = self.model(
            input_ids=tokens_BL,
            attention_mask=torch.zeros_like(seen_B1LW, dtype=self.model.dtype).masked_fill(
                ~seen_B1LW, torch.finfo(self.model.dtype).min
            ),
            position_ids=real_BL,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits_BLV: Tensor = output.logits
        return (logits_BLV if every else last_real(logits_BLV, positions_BL)).float()

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys[target].copy_(layer.keys[source])
                layer.values[target].copy_(layer.values[source])


def takes_slots(model: Any, context: int) -> bool:
    """Whether transformers runs this model's attention through its common interface, over the whole context in every layer."""
    config = model.config
    sliding = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    whole = kinds == {"full_attention"} and (sliding is None or sliding >= context)
    absolute = getattr(config, "rope_parameters", None) is not None or config.model_type in {"gpt2", "opt"}
    return whole and absolute and bool(getattr(model, "_supports_attention_backend", False))


def agrees(decoder: SlotDecoder, model: Any) -> bool:
    """Whether cached decoding gives the logits of a plain forward: a prompt in two chunks, then one token, in two rows."""
    generator = torch.Generator().manual_seed(0)
    length = min(12, decoder.context)
    tokens_BL = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    with torch.inference_mode():
        whole_BLV = model(input_ids=device.move(tokens_BL, model.device)).logits.float()
    positions_BL = torch.arange(length).repeat(2, 1)
    chunks = [slice(0, length // 2), slice(length // 2, length - 1), slice(length - 1, length)]
    parts = [decoder.forward(tokens_BL[:, c], positions_BL[:, c], 0, every=True) for c in chunks]
    difference = (torch.cat(parts, dim=1) - whole_BLV).abs().max()
    return bool(difference <= 1e-3 * whole_BLV.abs().max().clamp(min=1.0))
