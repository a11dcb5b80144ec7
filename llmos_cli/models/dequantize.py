"""Reading quantized checkpoints back as dense weights: compressed-tensors' linear layers and our own int8 ones.

Shapes: O outputs, I inputs, G groups of inputs that share a scale, W words of packed codes.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.models import headers, packing
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import QuantizedLinear

CONFIG_KEY = "quantization_config"
INT8_KEY = "llmos_int8"
FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "mixed-precision")
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
    model = complete(cls, None, directory, config=without_quantization(config), state_dict=state, dtype=wanted)
    if model.can_generate() and (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    round_inputs(model, config)
    return model


def complete(cls: type[Model], source: Path | None, directory: Path, **kwargs: Any) -> Model:
    """`cls.from_pretrained(source, ...)` in eval mode, with every tensor of the model found: transformers would fill in random ones."""
    loaded: Any = cls.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    model, info = loaded
    if wrong := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
        raise Corrupt(
            f"{directory} lacks {len(wrong)} of the model's tensors or has them in another shape, {wrong[0]} first",
            hint="`llmos fsck` tells whether the files are what was stored",
        )
    return cast(Model, model.eval())


def dequantized(directory: Path, config: PreTrainedConfig | Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Every dense weight of a quantized checkpoint, computed in `dtype` as transformers does."""
    with dense_weights(directory, config, dtype) as weights:
        return dict(weights)


@contextmanager
def dense_weights(
    directory: Path, config: PreTrainedConfig | Mapping[str, Any], dtype: torch.dtype
) -> Iterator[Mapping[str, Tensor]]:
    """The dense weights of any checkpoint by name, each read when it is asked for."""
    with dense_of(headers.of_directory(directory), config, dtype) as weights:
        yield weights


@contextmanager
def dense_of(
    entries: Mapping[str, headers.Entry], config: PreTrainedConfig | Mapping[str, Any], dtype: torch.dtype
) -> Iterator[Mapping[str, Tensor]]:
    """The same of some of its tensors, with the files of those open."""
    with ExitStack() as stack:
        yield _DenseWeights(entries, _groups(config), dtype, stack)


class _DenseWeights(Mapping[str, Tensor]):
    def __init__(
        self, entries: Mapping[str, headers.Entry], groups: Sequence[Group], dtype: torch.dtype, stack: ExitStack
    ) -> None:
        self._shapes = headers.dense_shapes(entries)
        self._quantized = set(headers.quantized_names(entries))
        self._groups, self._dtype, self._read = groups, dtype, Read(entries, stack)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._quantized:
            return _dense(name, self._shapes[name], self._read, self._groups, self._dtype)
        return _float(self._read(name), self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Read:
    """Tensors of a checkpoint by name, each file opened once."""

    def __init__(self, entries: Mapping[str, headers.Entry], stack: ExitStack) -> None:
        self._entries = entries
        self._opened = {
            file: stack.enter_context(safe_open(file, "pt")) for file in {entry.file for entry in entries.values()}
        }

    def has(self, name: str) -> bool:
        return name in self._entries

    def __call__(self, name: str) -> Tensor:
        return self._opened[self._entries[name].file].get_tensor(name)  # type: ignore[no-any-return]


def without_quantization(config: PreTrainedConfig) -> PreTrainedConfig:
    dense = copy.deepcopy(config)
    for key in (CONFIG_KEY, INT8_KEY):
        if hasattr(dense, key):
            delattr(dense, key)
    return dense


def round_inputs(model: nn.Module, config: PreTrainedConfig | Mapping[str, Any]) -> None:
    """Swap in `QuantizedLinear` wherever the configuration says that inputs are rounded."""
    ignored, groups = (_get(config, CONFIG_KEY) or {}).get("ignore") or (), _groups(config)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and not _matches(name, ignored):
            group = group_of(name, groups)
            if inputs := (group or {}).get("input_activations"):
                rounding = Float8Linear if inputs["type"] == "float" else QuantizedLinear
                model.set_submodule(name, rounding.of(module))


def group_of(name: str, groups: Sequence[Group]) -> Group | None:
    """The group that a linear layer belongs to: by its name before its class."""
    named = [group for group in groups if _matches(name, [t for t in group["targets"] if t != "Linear"])]
    return next(iter([*named, *(group for group in groups if "Linear" in group["targets"])]), None)


def bits_by_layer(config: PreTrainedConfig | Mapping[str, Any], entries: Mapping[str, headers.Entry]) -> dict[str, int]:
    """Bits of each weight stored as codes, by the weight's name."""
    shapes, groups = headers.dense_shapes(entries), _groups(config)
    return {
        name: _bits(name, shapes[name][1], entries[f"{name}_packed"].shape[1], groups)
        if f"{name}_packed" in entries
        else 8
        for name in headers.quantized_names(entries)
    }


def _groups(config: PreTrainedConfig | Mapping[str, Any]) -> list[dict[str, Any]]:
    """The config groups, those that name layers before those that name a class."""
    check(config)
    quantization = _get(config, CONFIG_KEY)
    return list(quantization["config_groups"].values()) if quantization else []


def check(config: PreTrainedConfig | Mapping[str, Any]) -> None:
    """LlmosError for weights in a format that is not read here."""
    quantization = _get(config, CONFIG_KEY)
    if not quantization:
        return
    method, form = quantization.get("quant_method"), quantization.get("format")
    if method != "compressed-tensors" or form not in FORMATS:
        raise LlmosError(
            f"llmos does not read weights quantized by {method} ({form or 'no format'})",
            hint=f"it reads compressed-tensors, {', '.join(FORMATS)}; import the dense model instead",
        )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether linear layer `name` is meant: by its class, its name, or a `re:` pattern of names."""
    return any(p in ("Linear", name) or (p.startswith("re:") and re.match(p[3:], name)) for p in patterns)


class Stored(NamedTuple):
    """A weight as it is stored: codes in the weight's shape, `scales_OG` and `zeros_OG` (codes; None: symmetric)."""

    codes: Tensor
    scales_OG: Tensor
    bits: int
    zeros_OG: Tensor | None


def stored_codes(
    entries: Mapping[str, headers.Entry], name: str, config: PreTrainedConfig | Mapping[str, Any]
) -> Stored:
    """The codes of one weight of a quantized checkpoint, by its stored name."""
    shapes = headers.dense_shapes(entries)
    own = {key: entry for key, entry in entries.items() if headers.dense_name(key, entries) == name}
    with ExitStack() as stack:
        return _codes(name, shapes[name], Read(own, stack), _groups(config))


def _codes(name: str, shape: Sequence[int], read: Read, groups: Sequence[Group]) -> Stored:
    scales_OG = read(f"{name}_scale").reshape(shape[0], -1)
    zeros = read(f"{name}_zero_point") if read.has(f"{name}_zero_point") else None
    if not read.has(f"{name}_packed"):
        return Stored(read(name), scales_OG, 8, zeros)
    words_OW = read(f"{name}_packed")
    bits = _bits(name, shape[1], words_OW.shape[1], groups)
    zeros_OG = None if zeros is None else packing.unpack(zeros.t(), bits, shape[0]).t()
    return Stored(packing.unpack(words_OW, bits, shape[1]), scales_OG, bits, zeros_OG)


def _dense(name: str, shape: Sequence[int], read: Read, groups: Sequence[Group], dtype: torch.dtype) -> Tensor:
    stored = _codes(name, shape, read, groups)
    return packing.dequantize(stored.codes, stored.scales_OG.to(dtype), stored.zeros_OG)


def _bits(name: str, inputs: int, words: int, groups: Sequence[Group]) -> int:
    """The declared width whose codes fill exactly `words` words a row. Which group a layer belongs to is said in names of
    modules, which are not always the stored names, so they are asked only where the sizes of a narrow layer leave a doubt."""
    weighing = [group for group in groups if group.get("weights")]
    declared = {group["weights"]["num_bits"] for group in weighing}
    fitting: list[int] = [bits for bits in sorted(declared) if -(-inputs * bits // packing.WORD) == words]
    if len(fitting) > 1:
        group = group_of(name.removesuffix(".weight"), weighing)
        fitting = [group["weights"]["num_bits"]] if group else []
    if len(fitting) != 1:
        raise Corrupt(f"config.json does not say how {name} is packed", hint="quantize or import it again")
    return fitting[0]


def _float(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _dtype(dtype: Any, config: PreTrainedConfig) -> torch.dtype:
    if dtype is None or dtype == "auto":
        dtype = config.dtype or torch.float32
    return dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype))


def _get(config: PreTrainedConfig | Mapping[str, Any], key: str) -> Any:
    value = config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)
    return value.to_dict() if value is not None and hasattr(value, "to_dict") else value
