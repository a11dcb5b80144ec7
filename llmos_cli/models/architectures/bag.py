"""`bag`: the mean embedding of a text's tokens and hashed token n-grams, then a linear layer (fastText, arXiv:1607.01759).

Shapes: B texts, L positions, D features, C classes.
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from llmos_cli.models.architectures.base import SmallModel, cross_entropy, head


@strict
class BagConfig(PreTrainedConfig):
    """`ngrams`: longest run of tokens that has an embedding of its own, found by hashing into `buckets` rows."""

    model_type = "bag"

    vocab_size: int = 4096
    hidden_size: int = 64
    ngrams: int = 2
    buckets: int = 32768
    dropout: float | int = 0.1
    pad_token_id: int | None = None


class BagModel(SmallModel):
    config_class = BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_ngrams = nn.Embedding(config.buckets, config.hidden_size) if config.ngrams > 1 else None
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        real_BL = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        total_BD = _sum(self.embed_tokens(input_ids), real_BL)
        count_B1 = real_BL.sum(1, keepdim=True)
        if self.embed_ngrams is not None:
            for length in range(2, min(self.config.ngrams, input_ids.shape[1]) + 1):
                whole_BN = real_BL.unfold(1, length, 1).all(-1)
                total_BD = total_BD + _sum(self.embed_ngrams(self.rows(input_ids, length)), whole_BN)
                count_B1 = count_B1 + whole_BN.sum(1, keepdim=True)
        return BaseModelOutput(last_hidden_state=total_BD / count_B1.clamp_min(1))

    def rows(self, input_ids_BL: Tensor, length: int) -> Tensor:
        """The hashed row of every run of `length` tokens: a polynomial in a prime, modulo 2^31 - 1 so that int64 never overflows."""
        hashed_BN: Tensor = torch.full_like(input_ids_BL[:, length - 1 :], length)
        for offset in range(length):
            tokens_BN = input_ids_BL[:, offset : input_ids_BL.shape[1] - length + 1 + offset]
            hashed_BN = (hashed_BN * 1_000_003 + tokens_BN + 1) % 2_147_483_647
        rows_BN: Tensor = hashed_BN % self.config.buckets
        return rows_BN


class BagForSequenceClassification(SmallModel):
    config_class = BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.backbone = BagModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = head(config.hidden_size, config)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        mean_BD = self.backbone(input_ids, attention_mask).last_hidden_state
        logits_BC = self.classifier(self.dropout(mean_BD))
        return SequenceClassifierOutput(loss=cross_entropy(logits_BC, labels), logits=logits_BC)


def _sum(embedded_BND: Tensor, real_BN: Tensor) -> Tensor:
    return torch.einsum("bnd,bn->bd", embedded_BND, real_BN.to(embedded_BND.dtype))


AutoConfig.register("bag", BagConfig)
AutoModel.register(BagConfig, BagModel)
AutoModelForSequenceClassification.register(BagConfig, BagForSequenceClassification)
