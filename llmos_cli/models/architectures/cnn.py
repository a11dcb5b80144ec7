"""`cnn`: convolution, batch norm, ReLU, again and again, halving the image on the way; for small images.

Shapes: B images, D channels, H and W pixels, C classes.
"""

from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutputWithNoAttention

from llmos_cli.models.architectures.base import SmallModel, cross_entropy, head


@strict
class CnnConfig(PreTrainedConfig):
    """`channels`: output channels of each block; the image is halved after each but the first, while it can be."""

    model_type = "cnn"

    channels: list[int] | tuple[int, ...] = (32, 64, 128)
    kernel_size: int = 3
    dropout: float | int = 0.1
    image_size: int = 8
    num_channels: int = 1


class CnnBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, halve: bool) -> None:
        super().__init__()
        # The norm's shift makes a bias of the convolution redundant.
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.halve = halve

    def forward(self, hidden_BDHW: Tensor) -> Tensor:
        hidden_BDHW = F.relu(self.norm(self.conv(hidden_BDHW)))
        return F.max_pool2d(hidden_BDHW, 2) if self.halve else hidden_BDHW


class CnnModel(SmallModel):
    config_class = CnnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        widths = [config.num_channels, *config.channels]
        self.blocks = nn.ModuleList(
            CnnBlock(inputs, outputs, config.kernel_size, halve=index > 0 and config.image_size >> index > 0)
            for index, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        hidden_BDHW = pixel_values
        for block in self.blocks:
            hidden_BDHW = block(hidden_BDHW)
        return BaseModelOutput(last_hidden_state=hidden_BDHW)


class CnnForImageClassification(SmallModel):
    config_class = CnnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        self.backbone = CnnModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = head(config.channels[-1], config)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        pooled_BD = self.backbone(pixel_values).last_hidden_state.mean((2, 3))
        logits_BC = self.classifier(self.dropout(pooled_BD))
        return ImageClassifierOutputWithNoAttention(loss=cross_entropy(logits_BC, labels), logits=logits_BC)


AutoConfig.register("cnn", CnnConfig)
AutoModel.register(CnnConfig, CnnModel)
AutoModelForImageClassification.register(CnnConfig, CnnForImageClassification)
