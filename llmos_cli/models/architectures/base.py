"""What our small architectures share: a `PreTrainedModel` that also reads our int8 checkpoints, and heads that speak transformers' outputs.

Shapes: B samples, L positions, D features, C classes.
"""

from __future__ import annotations

import importlib
import os
from typing import Any, Self, cast

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init


class SmallModel(PreTrainedModel):
    """Base of our architectures.

    `from_pretrained` is transformers' own, except that a quantized directory (packed linear layers, int8 convolutions
    and LSTMs) is read by `llmos_cli.models.dequantize`: transformers knows no such format for the latter two.
    """

    base_model_prefix = "backbone"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | os.PathLike[str] | None, *args: Any, config: Any = None, **kwargs: Any
    ) -> Self:
        if path is not None and _is_quantized(found := config_of(cls, path, config)):
            # By name: exported beside dense weights, this file stands alone, and transformers looks at what it imports.
            dequantize: Any = importlib.import_module("llmos_cli.models.dequantize")
            return cast(Self, dequantize.load(cls, path, found, dtype=kwargs.get("dtype")))
        return super().from_pretrained(path, *args, config=config, **kwargs)

    def post_init(self) -> None:
        super().post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """He initialisation for what a ReLU follows; LSTMs as torch does, with forget gates open (Jozefowicz et al. 2015)."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            _init_lstm(module)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


def config_of(cls: type[SmallModel], path: str | os.PathLike[str], config: Any) -> PreTrainedConfig:
    """`config` where it is one already, else the one stored at `path` (a directory, or what `config` names)."""
    if isinstance(config, PreTrainedConfig):
        return config
    return cls.config_class.from_pretrained(config if config is not None else path)  # type: ignore[union-attr]


def _is_quantized(config: PreTrainedConfig) -> bool:
    return bool(getattr(config, "quantization_config", None) or getattr(config, "llmos_int8", None))


def head(inputs: int, config: PreTrainedConfig) -> nn.Linear:
    """The layer that turns features into one logit a class."""
    return nn.Linear(inputs, config.num_labels or 0)


def cross_entropy(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """Mean over the labels that are not -100; None without labels. `logits` [..., C], `labels` [...]."""
    if labels is None:
        return None
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def _init_lstm(lstm: nn.LSTM) -> None:
    bound = lstm.hidden_size**-0.5
    for name, parameter in lstm.named_parameters():
        if "weight" in name:
            init.uniform_(parameter, -bound, bound)
        else:
            init.zeros_(parameter)
    # Gates are stacked (input, forget, cell, output) and the two biases add up: one of them opens the forget gate.
    bias_4H = lstm.get_parameter("bias_ih_l0")
    if not getattr(bias_4H, "_is_hf_initialized", False):
        init.constant_(bias_4H[lstm.hidden_size : 2 * lstm.hidden_size], 1.0)
