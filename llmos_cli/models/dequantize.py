"""Reading quantized checkpoints back as dense weights: compressed-tensors' linear layers and our own int8 ones.

Shapes: O outputs, I inputs, G groups of inputs that share a scale, W words of packed codes.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.models import headers, packing
from llmos_cli.models.int8 import QuantizedLinear

CONFIG_KEY = "quantization_config"
INT8_KEY = "llmos_int8"
Model = TypeVar("Model", bound=PreTrainedModel)
Group = Mapping[str, Any]
"""One of compressed-tensors' `config_groups`: its targets and how their weights and inputs are quantized."""


def is_quantized(config: PreTrainedConfig | Mapping[str, Any]) -> bool:
    return any(_get(config, key) for key in (CONFIG_KEY, INT8_KEY))


def load(cls: type[Model], path: str | os.PathLike[str], config: PreTrainedConfig, *, dtype: Any = None) -> Model:
    """A model of plain modules with the dequantized weights; W8A8 layers round their inputs too.

    `dtype`: torch dtype, its name, or None / "auto" for the stored one.
    """
    directory = Path(path)
    wanted = _dtype(dtype, config)
    state = dequantized(directory, config, wanted)
    model, info = cls.from_pretrained(
        None, config=without_quantization(config), state_dict=state, dtype=wanted, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise Corrupt(f"{directory} lacks {len(missing)} tensors, {missing[0]!r} first.", hint="llmos fsck")
    if model.can_generate() and (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    round_inputs(model, config)
    return model.eval()


def dequantized(directory: Path, config: PreTrainedConfig | Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every dense weight of a quantized checkpoint, computed in `dtype` as transformers does."""
    entries = headers.of_directory(directory)
    names = set(headers.quantized_names(entries))
    shapes = headers.dense_shapes(entries)
    groups = _groups(config)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in {e.file for e in entries.values()}}

        def read(name: str) -> Tensor | None:
            return opened[entries[name].file].get_tensor(name) if name in entries else None

        return {
            name: _dense(name, shapes[name], read, groups, dtype) if name in names else _float(read(name), dtype)
            for name in shapes
        }


def without_quantization(config: PreTrainedConfig) -> PreTrainedConfig:
    dense = copy.deepcopy(config)
    for key in (CONFIG_KEY, INT8_KEY):
        if hasattr(dense, key):
            delattr(dense, key)
    return dense


def round_inputs(model: nn.Module, config: PreTrainedConfig | Mapping[str, Any]) -> None:
    """Swap in `QuantizedLinear` wherever the configuration says that inputs are rounded."""
    quantization = _get(config, CONFIG_KEY) or {}
    groups = [group for group in _groups(config) if group.get("input_activations")]
    if not groups:
        return
    ignored = quantization.get("ignore") or ()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not _matches(name, ignored) and _group_of(name, groups):
            model.set_submodule(name, QuantizedLinear.of(module))


def bits_by_layer(config: Mapping[str, Any], entries: Mapping[str, headers.Entry]) -> dict[str, int]:
    """Bits of each weight stored as codes, by the weight's name."""
    groups = _groups(config)
    return {
        name: _group_of(name.removesuffix(".weight"), groups)["weights"]["num_bits"]
        if f"{name}_packed" in entries
        else 8
        for name in headers.quantized_names(entries)
    }


def _groups(config: PreTrainedConfig | Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config groups, those that name layers before those that name a class."""
    quantization = _get(config, CONFIG_KEY)
    if not quantization:
        return []
    method, form = quantization.get("quant_method"), quantization.get("format")
    if method != "compressed-tensors" or form not in ("pack-quantized", "int-quantized"):
        raise LlmosError(
            f"llmos does not read weights quantized by {method} ({form or 'no format'}).",
            hint="It reads compressed-tensors, pack-quantized and int-quantized; import the dense model instead.",
        )
    return sorted(quantization["config_groups"].values(), key=lambda group: "Linear" in group["targets"])


def _group_of(name: str, groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The group that covers linear layer `name`; empty when none does."""
    return next((group for group in groups if _matches(name, ["Linear", name], group["targets"])), {})


def _matches(name: str, patterns: Iterable[str], targets: Iterable[str] | None = None) -> bool:
    if targets is None:
        return any(p == name or (p.startswith("re:") and re.match(p[3:], name)) for p in patterns)
    return any(t in patterns or (t.startswith("re:") and re.match(t[3:], name)) for t in targets)


def _dense(
    name: str, shape: Sequence[int], read: Any, groups: Sequence[Mapping[str, Any]], dtype: torch.dtype
) -> Tensor:
    scales_OG = read(f"{name}_scale").to(dtype).reshape(shape[0], -1)
    words_OW = read(f"{name}_packed")
    zeros = read(f"{name}_zero_point")
    if words_OW is None:
        return packing.dequantize(read(name), scales_OG, zeros)
    args = _group_of(name.removesuffix(".weight"), groups).get("weights")
    if args is None or words_OW.shape[1] != -(-shape[1] * args["num_bits"] // packing.WORD):
        raise Corrupt(f"config.json does not describe how {name} is packed.", hint="Quantize or import it again.")
    bits = args["num_bits"]
    zeros_OG = None if zeros is None else packing.unpack(zeros.t(), bits, shape[0]).t()
    return packing.dequantize(packing.unpack(words_OW, bits, shape[1]), scales_OG, zeros_OG)


def _float(value: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert value is not None
    return value.to(dtype) if value.is_floating_point() else value


def _dtype(dtype: Any, config: PreTrainedConfig) -> torch.dtype:
    if dtype is None or dtype == "auto":
        dtype = config.dtype or torch.float32
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype))


def _get(config: PreTrainedConfig | Mapping[str, Any], key: str) -> Any:
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return value.to_dict() if hasattr(value, "to_dict") else value
