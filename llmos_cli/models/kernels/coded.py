"""Models that answer with codes: a quantized checkpoint loaded for inference, its linear layers never dense in memory.

`models.load` dequantizes: the reference arithmetic, in which quality is judged. Here a linear layer reads its codes when they are
first needed and multiplies with the kernel that is fastest on this machine; an embedding makes values of the rows that are looked up.

Shapes: V rows, E features, G groups of them that share a scale, L positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
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


class CodedEmbedding(nn.Module):
    """An embedding that has codes instead of a weight: `codes_VE` int8, `scales_VG` in the dtype that it answers in."""

    codes_VE: Tensor
    scales_VG: Tensor

    def __init__(self, codes: Codes, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = codes.codes_OI.shape
        self.register_buffer("codes_VE", codes.codes_OI, persistent=False)
        self.register_buffer("scales_VG", codes.scales_OG.to(dtype), persistent=False)

    def forward(self, rows_L: Tensor) -> Tensor:
        codes_LE, scales_LG = F.embedding(rows_L, self.codes_VE), F.embedding(rows_L, self.scales_VG)
        codes_LGe = codes_LE.unflatten(-1, (scales_LG.shape[-1], -1)).to(scales_LG.dtype)
        values_LE: Tensor = (codes_LGe * scales_LG.unsqueeze(-1)).flatten(-2)
        return values_LE


def load(path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> PreTrainedModel:
    """The model of a checkpoint directory for inference, in eval mode: as `models.load` gives it, quantized linear layers as codes.

    Layers of convolutions and LSTMs, for which there are no kernels, come back dequantized. Raises as `models.load` does.
    """
    config = load_config(path)
    if not dequantize.is_quantized(config):
        return load_dense(path, dtype=dtype, device=device)
    wanted, cls = dtype or torch.float32, model_class(config, path)
    entries, bare = headers.of_directory(path), skeleton(path)
    coded = _coded_layers(bare, entries)
    model = dequantize.complete(
        cls,
        None,
        path,
        config=dequantize.without_quantization(config),
        state_dict=_state(path, config, wanted, entries, set(coded.values())),
        dtype=wanted,
    )
    if model.can_generate() and (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    dequantize.round_inputs(model, config)
    for name, stored in coded.items():
        _put_codes(model, name, _reader(entries, stored, config, model.get_submodule(name), device), wanted)
    return nn.Module.to(model, device) if device is not None else model


def quantize_head(model: PreTrainedModel, way: str) -> bool:
    """Round the output layer of a language model, in memory: a large share of a small model, which is mostly stored dense.
    Whether it was: one that holds codes keeps them."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    bits, rounds_inputs = HEADS[way]
    group = next((size for size in (128, 64, 32) if head.in_features % size == 0), None) if bits == 4 else None
    codes = replace(rounded(head.weight, bits, group, _detached(head.bias)), rounds_inputs=rounds_inputs)
    model.set_output_embeddings(CodedLinear(lambda: codes, *head.weight.shape))
    return True


def summary(products: Iterable[Any]) -> list[str]:
    """What was chosen, a sentence for each kind of layer: the form, and how much faster than dense it was measured."""
    chosen = [product for product in products if isinstance(product, choice.Chosen)]
    counts = Counter(product.kind for product in chosen)
    return [f"{counts[kind]} of {found.told}" for kind, found in {product.kind: product for product in chosen}.items()]


def _coded_layers(bare: PreTrainedModel, entries: Mapping[str, headers.Entry]) -> dict[str, str]:
    """The linear layers and embeddings stored as codes: name of the module -> stored name of its weight, which a tied head shares."""
    stored, quantized = stored_names(bare), set(headers.quantized_names(entries))
    tied = bare.get_expanded_tied_weights_keys(all_submodels=True)
    found = {}
    for name, module in bare.named_modules():
        weight = f"{name}.weight"
        place = stored.get(tied.get(weight, weight))
        # Subclasses of embeddings do more than look up.
        if place in quantized and (isinstance(module, nn.Linear) or type(module) is nn.Embedding):
            found[name] = place
    return found


def _state(
    path: Path, config: Any, dtype: torch.dtype, entries: Mapping[str, headers.Entry], coded: Collection[str]
) -> dict[str, Tensor]:
    """The model's tensors; of layers that will hold codes, a single zero that has the weight's shape."""
    shapes = headers.dense_shapes(entries)
    with dequantize.dense_weights(path, config, dtype) as weights:
        return {
            name: torch.zeros((), dtype=dtype).expand(shapes[name]) if name in coded else weights[name]
            for name in weights
        }


def _put_codes(model: nn.Module, name: str, read: Callable[[], Codes], dtype: torch.dtype) -> None:
    module = model.get_submodule(name)
    if isinstance(module, nn.Embedding):
        model.set_submodule(name, CodedEmbedding(read(), dtype))
    else:
        assert isinstance(module, nn.Linear)
        model.set_submodule(name, CodedLinear(read, module.out_features, module.in_features))


def _reader(
    entries: Mapping[str, headers.Entry], stored: str, config: Any, module: nn.Module, device: torch.device | str | None
) -> Callable[[], Codes]:
    """Reads a layer's codes from its file; nothing of them is held until then."""
    rounds_inputs, bias_O = isinstance(module, int8.QuantizedLinear), _detached(getattr(module, "bias", None))

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
