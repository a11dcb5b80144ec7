"""Models that answer with codes: a quantized checkpoint loaded for inference, its linear layers never dense in memory.

`models.load` dequantizes: the reference arithmetic, in which quality is judged. Here a linear layer reads its codes when they are
first needed and multiplies with the kernel that is fastest on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from llmos_cli.models import dequantize, headers, int8
from llmos_cli.models.kernels import choice
from llmos_cli.models.kernels.codes import Codes, rounded
from llmos_cli.models.load import load as load_dense
from llmos_cli.models.load import load_config, model_class, skeleton
from llmos_cli.models.save import stored_names

HEADS: Mapping[str, tuple[int, bool]] = {"w8a8": (8, True), "w8": (8, False), "w4": (4, False)}
"""Ways to hold an output layer that is stored dense: bits, and whether its inputs are rounded to int8."""


class CodedLinear(nn.Module):
    """A linear layer that has codes instead of a weight; `read` gives them, on the device where the layer computes."""

    def __init__(self, read: Callable[[], Codes], outputs: int, inputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.read = read
        self.chosen: choice.Chosen | None = None

    def forward(self, x: Tensor) -> Tensor:
        return (self.chosen or self.prepare(x.dtype))(x)

    def prepare(self, dtype: torch.dtype) -> choice.Chosen:
        self.chosen = choice.choose(self.read(), dtype)
        for index, tensor in enumerate(self.chosen.tensors):
            self.register_buffer(f"held_{index}", tensor, persistent=False)
        return self.chosen


def load(path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> PreTrainedModel:
    """The model of a checkpoint directory for inference, in eval mode: as `models.load` gives it, quantized linear layers as codes.

    Layers of convolutions and LSTMs, for which there are no kernels, come back dequantized. Raises as `models.load` does.
    """
    config = load_config(path)
    if not dequantize.is_quantized(config):
        return load_dense(path, dtype=dtype, device=device)
    wanted, cls = dtype or torch.float32, model_class(config, path)
    entries, bare = headers.of_directory(path), skeleton(path)
    linear = _coded_layers(bare, entries)
    model = dequantize.complete(
        cls,
        None,
        path,
        config=dequantize.without_quantization(config),
        state_dict=_state(path, config, wanted, entries, linear),
        dtype=wanted,
    )
    if model.can_generate() and (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    dequantize.round_inputs(model, config)
    for stored, name in linear.items():
        _put_codes(model, name, _reader(entries, stored, config, model.get_submodule(name), device))
    return nn.Module.to(model, device) if device is not None else model


def quantize_head(model: PreTrainedModel, way: str) -> None:
    """Round the output layer of a language model, in memory: a large share of a small model, which is mostly stored dense."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return
    bits, rounds_inputs = HEADS[way]
    group = next((size for size in (128, 64, 32) if head.in_features % size == 0), None) if bits == 4 else None
    codes = replace(rounded(head.weight, bits, group, _detached(head.bias)), rounds_inputs=rounds_inputs)
    model.set_output_embeddings(CodedLinear(lambda: codes, *head.weight.shape))


def summary(products: Iterable[Any]) -> list[str]:
    """What was chosen, a sentence for each kind of layer: the form, and how much faster than dense it was measured."""
    chosen = [product for product in products if isinstance(product, choice.Chosen)]
    counts = Counter(product.kind for product in chosen)
    return [f"{counts[kind]} of {found.told}" for kind, found in {product.kind: product for product in chosen}.items()]


def _coded_layers(bare: PreTrainedModel, entries: Mapping[str, headers.Entry]) -> dict[str, str]:
    """Module names of the linear layers stored as codes, by the stored name of their weight."""
    stored, quantized = stored_names(bare), set(headers.quantized_names(entries))
    linear = [name for name, module in bare.named_modules() if isinstance(module, nn.Linear)]
    return {stored[key]: name for name in linear if stored.get(key := f"{name}.weight") in quantized}


def _state(
    path: Path, config: Any, dtype: torch.dtype, entries: Mapping[str, headers.Entry], coded: Mapping[str, str]
) -> dict[str, Tensor]:
    """The model's tensors; of layers that will hold codes, a single zero that has the weight's shape."""
    shapes = headers.dense_shapes(entries)
    with dequantize.dense_weights(path, config, dtype) as weights:
        return {
            name: torch.zeros((), dtype=dtype).expand(shapes[name]) if name in coded else weights[name]
            for name in weights
        }


def _put_codes(model: nn.Module, name: str, read: Callable[[], Codes]) -> None:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    model.set_submodule(name, CodedLinear(read, linear.out_features, linear.in_features))


def _reader(
    entries: Mapping[str, headers.Entry], stored: str, config: Any, linear: nn.Module, device: torch.device | str | None
) -> Callable[[], Codes]:
    """Reads a layer's codes from its file; nothing of them is held until then."""
    rounds_inputs, bias_O = isinstance(linear, int8.QuantizedLinear), _detached(cast(nn.Linear, linear).bias)

    def read() -> Codes:
        found = dequantize.stored_codes(entries, stored, config)
        return Codes(
            found.codes.to(device or "cpu"),
            found.scales_OG.to(device or "cpu"),
            found.bits,
            rounds_inputs,
            None if found.zeros_OG is None else found.zeros_OG.to(device or "cpu"),
            None if bias_O is None else bias_O.to(device or "cpu"),
        )

    return read


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
