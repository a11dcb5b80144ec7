"""`lstm`: embeddings and a stack of LSTMs, for texts, tags of tokens, and next tokens.

A sample's padding stands on its right. The backward direction is a second LSTM that reads each sample reversed within
its own length, so a sample's result does not depend on what it is batched with, and every LSTM here is a plain
one-layer, one-direction module on a dense tensor: what pruning and quantizing want.

Shapes: B samples, L positions, D features, C classes.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationMixin,
    PreTrainedConfig,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from llmos_cli.models.architectures.base import SmallModel, cross_entropy, head


@strict
class LstmConfig(PreTrainedConfig):
    """`hidden_size`: features of each direction; `bidirectional` is ignored for causal language models."""

    model_type = "lstm"

    vocab_size: int = 4096
    embedding_size: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 1
    bidirectional: bool = True
    dropout: float | int = 0.1
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = False


class LstmLayer(nn.Module):
    def __init__(self, inputs: int, hidden_size: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.ahead = nn.LSTM(inputs, hidden_size, batch_first=True)
        self.back = nn.LSTM(inputs, hidden_size, batch_first=True) if bidirectional else None

    def forward(self, hidden_BLD: Tensor, reversed_BL: Tensor) -> Tensor:
        ahead_BLD: Tensor = self.ahead(hidden_BLD)[0]
        if self.back is None:
            return ahead_BLD
        back_BLD = _take(self.back(_take(hidden_BLD, reversed_BL))[0], reversed_BL)
        return torch.cat([ahead_BLD, back_BLD], -1)


class LstmModel(SmallModel):
    config_class = LstmConfig

    def __init__(self, config: LstmConfig, *, causal: bool = False) -> None:
        super().__init__(config)
        both = config.bidirectional and not causal
        self.width = config.hidden_size * (2 if both else 1)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            LstmLayer(config.embedding_size if index == 0 else self.width, config.hidden_size, bidirectional=both)
            for index in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        reversed_BL = _reversal(input_ids, attention_mask)
        hidden_BLD = self.dropout(self.embed_tokens(input_ids))
        for layer in self.layers:
            hidden_BLD = self.dropout(layer(hidden_BLD, reversed_BL))
        return BaseModelOutput(last_hidden_state=hidden_BLD)


class LstmForSequenceClassification(SmallModel):
    """Largest and mean feature over the text, then a linear layer."""

    config_class = LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.backbone = LstmModel(config)
        self.classifier = head(2 * self.backbone.width, config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        hidden_BLD = self.backbone(input_ids, attention_mask).last_hidden_state
        real_BL1 = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()[..., None]
        mean_BD = (hidden_BLD * real_BL1).sum(1) / real_BL1.sum(1).clamp_min(1)
        # Features of an LSTM lie within (-1, 1), so -1 never wins against a real position.
        largest_BD = hidden_BLD.masked_fill(~real_BL1, -1.0).amax(1)
        logits_BC = self.classifier(torch.cat([mean_BD, largest_BD], -1))
        return SequenceClassifierOutput(loss=cross_entropy(logits_BC, labels), logits=logits_BC)


class LstmForTokenClassification(SmallModel):
    config_class = LstmConfig

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.backbone = LstmModel(config)
        self.classifier = head(self.backbone.width, config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> TokenClassifierOutput:
        logits_BLC = self.classifier(self.backbone(input_ids, attention_mask).last_hidden_state)
        return TokenClassifierOutput(loss=cross_entropy(logits_BLC, labels), logits=logits_BLC)


class LstmForCausalLM(SmallModel, GenerationMixin):
    """One direction only. Generation recomputes the prefix at every token: there is no cache."""

    config_class = LstmConfig
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        self.backbone = LstmModel(config, causal=True)
        # A projection back to the embedding's width lets the head be the embedding itself.
        self.project = nn.Linear(config.hidden_size, config.embedding_size)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        logits_BLC = self.lm_head(self.project(self.backbone(input_ids).last_hidden_state))
        loss = None if labels is None else cross_entropy(logits_BLC[:, :-1], labels[:, 1:])
        return CausalLMOutput(loss=loss, logits=logits_BLC)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"input_ids": input_ids}


def _reversal(input_ids_BL: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """Positions that reverse each sample within its length and leave its padding where it is; its own inverse."""
    positions_L = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
    if attention_mask_BL is None:
        return positions_L.flip(0).expand_as(input_ids_BL)
    lengths_B1 = attention_mask_BL.sum(1, keepdim=True)
    return torch.where(positions_L < lengths_B1, lengths_B1 - 1 - positions_L, positions_L)


def _take(hidden_BLD: Tensor, positions_BL: Tensor) -> Tensor:
    # Batch and length from the positions: `expand_as` exports to ONNX with those of the example it was traced with.
    return hidden_BLD.gather(1, positions_BL[..., None].expand(-1, -1, hidden_BLD.shape[2]))


AutoConfig.register("lstm", LstmConfig)
AutoModel.register(LstmConfig, LstmModel)
AutoModelForSequenceClassification.register(LstmConfig, LstmForSequenceClassification)
AutoModelForTokenClassification.register(LstmConfig, LstmForTokenClassification)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)
