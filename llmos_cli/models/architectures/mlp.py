"""`mlp`: pixels in one row through fully connected layers, for small images.

Shapes: B images, D features, C classes.
"""

from itertools import pairwise
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutputWithNoAttention

from llmos_cli.models.architectures.base import SmallModel, cross_entropy, head


@strict
class MlpConfig(PreTrainedConfig):
    """`image_size` is the side of the square image in pixels, `num_channels` its colours."""

    model_type = "mlp"

    hidden_size: int = 256
    num_hidden_layers: int = 2
    dropout: float | int = 0.1
    image_size: int = 8
    num_channels: int = 1


class MlpModel(SmallModel):
    config_class = MlpConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        widths = [config.num_channels * config.image_size**2] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(config.dropout))
            for inputs, outputs in pairwise(widths)
        )
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        hidden_BD = pixel_values.flatten(1)
        for layer in self.layers:
            hidden_BD = layer(hidden_BD)
        return BaseModelOutput(last_hidden_state=hidden_BD)


class MlpForImageClassification(SmallModel):
    config_class = MlpConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MlpConfig) -> None:
        super().__init__(config)
        self.backbone = MlpModel(config)
        self.classifier = head(config.hidden_size, config)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        logits_BC = self.classifier(self.backbone(pixel_values).last_hidden_state)
        return ImageClassifierOutputWithNoAttention(loss=cross_entropy(logits_BC, labels), logits=logits_BC)


AutoConfig.register("mlp", MlpConfig)
AutoModel.register(MlpConfig, MlpModel)
AutoModelForImageClassification.register(MlpConfig, MlpForImageClassification)
