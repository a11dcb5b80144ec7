"""A language model as a deployment computes it, for evaluation: the logits of whole sequences, through the decoder and its cache.

In the arithmetic of evaluations (fp32 unless told), so that what differs from the plain model is the cache alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from llmos_cli.errors import UsageError
from llmos_cli.serve.decoder import LlamaDecoder, obstacle


class Served(nn.Module):
    """Takes batches as the model does, padded at the end of rows. UsageError for a model that the decoder does not know."""

    def __init__(self, model: Any, *, kv_cache: str) -> None:
        super().__init__()
        self.model, self.kv_cache = model, kv_cache
        self.decoder: LlamaDecoder | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions_BL = (torch.arange(input_ids.shape[1], device=input_ids.device) + 1) * real_BL - 1
        logits_BLV = self._decoder(*input_ids.shape).forward(input_ids, positions_BL, 0, every=True)
        return CausalLMOutput(logits=logits_BLV)

    def _decoder(self, rows: int, length: int) -> LlamaDecoder:
        """With room for the largest batch so far."""
        if self.decoder is None or self.decoder.slots < rows or self.decoder.context < length:
            if reason := obstacle(self.model, length):
                raise UsageError(
                    f"a cache in {self.kv_cache} needs llmos's own decoder, which does not decode this model: {reason}",
                    hint="leave eval.kv_cache out",
                )
            self.decoder = LlamaDecoder(self.model, slots=rows, context=length, kv_cache=self.kv_cache)
        return self.decoder
