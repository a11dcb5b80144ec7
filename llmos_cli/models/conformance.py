"""Whether a quantized checkpoint is what compressed-tensors means by it, and whether vLLM has kernels for it.

Decided from config.json and the headers of the weights alone, layer by layer, by the rules that the readers document:
compressed-tensors 0.20 (`compressors/pack_quantized/base.py`, `quantization/quant_args.py`) for the format; for vLLM
`quantization/compressed_tensors/{compressed_tensors,utils}.py`, its schemes `wNa16` and `w8a8_int8`, and the kernels under
`kernels/linear/mixed_precision/` (`marlin.py` on GPUs, `cpu.py`).

Shapes: O outputs, I inputs, G groups of inputs that share a scale, W words of packed codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from llmos_cli.models import headers
from llmos_cli.models.architectures.base import SmallModel
from llmos_cli.models.dequantize import CONFIG_KEY
from llmos_cli.models.load import skeleton
from llmos_cli.models.quantized import FLOATS as FLOAT8
from llmos_cli.models.quantized import MIXED, PACKED, PLAIN
from llmos_cli.models.save import stored_names

FLOATS = ("F16", "BF16", "F32")
KERNEL_BITS = (4, 8)
OTHER_BITS = "for weights alone it has 4 and 8 bits"
KERNEL_GROUPS = (-1, 32, 64, 128)
CPU_MULTIPLE = 32
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
"""Layers that vLLM runs as one, so that they must share a scheme (`packed_modules_mapping` of its models)."""
NAMED = 3
"""Layers that are named where many have the same fault."""


@dataclass(frozen=True)
class Conformance:
    """`broken`: what contradicts the format, which no reader need forgive; `refused`: what vLLM would not run; `slow`: where
    it leaves its fast kernels. Each a sentence."""

    scheme: str
    broken: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()

    @property
    def runs_in_other_bits(self) -> bool:
        """Whether vLLM would refuse it for its bits and for nothing else."""
        return bool(self.refused) and all(reason.endswith(OTHER_BITS) for reason in self.refused)

    @property
    def sentence(self) -> str:
        if self.broken:
            return f"not the format it claims to be: {'; '.join(self.broken)}"
        if self.refused:
            return f"vLLM would refuse it: {'; '.join(self.refused)}"
        return f"by its documented rules vLLM runs it: {'; '.join([self.scheme, *self.slow])}"


@dataclass(frozen=True)
class _Layer:
    """A linear layer or embedding of the model: its name there, the name of its weight on disk, the group that targets it; `tied`:
    its codes are another's."""

    name: str
    stored: str
    outputs: int
    inputs: int
    group: str | None
    embeds: bool = False
    tied: bool = False


def check(directory: Path) -> Conformance | None:
    """What is wrong with a checkpoint directory for readers of compressed-tensors; None where it holds none of that."""
    config = json.loads((directory / "config.json").read_bytes())
    quantization: Mapping[str, Any] | None = config.get(CONFIG_KEY)
    if not quantization:
        return None
    broken = list(_declared(quantization))
    if broken:
        return Conformance("", tuple(broken))
    schemes = {name: QuantizationScheme(**group) for name, group in quantization["config_groups"].items()}
    entries, model = headers.of_directory(directory), skeleton(directory)
    layers = list(_layers(model, headers.dense_shapes(entries), quantization))
    forms = {name: scheme.format or quantization["format"] for name, scheme in schemes.items()}
    broken += _gathered(fault for layer in layers for fault in _stored(layer, entries, schemes, forms))
    told = ", ".join(dict.fromkeys(_named(schemes[layer.group]) for layer in layers if layer.group))
    refused = [*_no_architecture(model), *_no_kernel(quantization, _of_linear(schemes, layers), forms)]
    refused += [*_no_lookup(layers, forms), *_gathered(_split(layers))]
    return Conformance(told, tuple(broken), tuple(refused), tuple(_slow(layers, schemes)))


def _declared(quantization: Mapping[str, Any]) -> Iterator[str]:
    """Faults of the description itself."""
    for key, allowed in (
        ("quant_method", ("compressed-tensors",)),
        ("format", (PACKED, PLAIN, FLOAT8, MIXED)),
        ("quantization_status", ("compressed",)),
    ):
        if quantization.get(key) not in allowed:
            yield f"{key} is {quantization.get(key)!r}, not {' or '.join(allowed)}"
    groups = quantization.get("config_groups")
    if not groups:
        yield "config_groups is empty"
        return
    for name, group in groups.items():
        try:
            if QuantizationScheme(**group).weights is None:
                yield f"{name} says nothing of weights"
        except (ValidationError, TypeError, NotImplementedError) as problem:
            yield f"{name} is no scheme: {str(problem).splitlines()[-1].strip()}"


def _layers(model: PreTrainedModel, known: Collection[str], quantization: Mapping[str, Any]) -> Iterator[_Layer]:
    on_disk, tied = stored_names(model, known), model.get_expanded_tied_weights_keys(all_submodels=True)
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        place, twin = on_disk.get(weight, weight), weight in tied
        if isinstance(module, nn.Linear):  # a head tied to the embedding too: readers quantize it unless it is ignored
            group = _group(name, quantization)
            yield _Layer(name, place, module.out_features, module.in_features, group, tied=twin)
        elif isinstance(module, nn.Embedding) and (group := _group(name, quantization, "Embedding")):
            rows, width = module.weight.shape
            yield _Layer(name, place, rows, width, group, embeds=True, tied=twin)


def _group(name: str, quantization: Mapping[str, Any], kind: str = "Linear") -> str | None:
    """The group that targets a layer: by name before by class, none where it is ignored."""
    if _matches(name, quantization.get("ignore") or ()):
        return None
    groups: Mapping[str, Any] = quantization["config_groups"]
    for by_name in (True, False):
        for group, scheme in groups.items():
            targets = scheme["targets"]
            if _matches(name, targets) if by_name else kind in targets:
                return group
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.match(p[3:], name) if p.startswith("re:") else p == name for p in patterns)


def _stored(
    layer: _Layer,
    entries: Mapping[str, headers.Entry],
    schemes: Mapping[str, QuantizationScheme],
    forms: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    """(fault, layer) where the tensors of a layer are not what its group calls for."""
    present = {suffix for suffix in ("_packed", "_scale", "_shape", "_zero_point") if layer.stored + suffix in entries}
    if layer.group is None:
        if present:
            yield "codes of a layer that no group targets", layer.name
        return
    args, form = _weights(schemes[layer.group]), forms[layer.group]
    if layer.embeds and form == PACKED:
        yield "packed codes of an embedding, which transformers does not read", layer.name
    expected = _expected(layer, args, form)
    if layer.tied and form == PLAIN:
        expected.pop("")  # transformers ties the codes
    for suffix, (dtypes, shape) in expected.items():
        entry = entries.get(layer.stored + suffix)
        if entry is None:
            yield f"no weight{suffix}", layer.name
        elif entry.dtype not in dtypes or entry.shape != shape:
            yield f"weight{suffix} is {entry.dtype} {list(entry.shape)}, not {dtypes[0]} {list(shape)}", layer.name
    if "_zero_point" in present and args.symmetric:
        yield "a zero point beside symmetric codes", layer.name
    if form == PACKED and layer.stored in entries:
        yield "a dense weight beside its codes", layer.name
    if "_shape" in present and headers.stored_shape(entries[layer.stored + "_shape"]) != (layer.outputs, layer.inputs):
        yield "weight_shape says another shape than the model's", layer.name
    if layer.inputs % _size(layer, args):
        yield f"groups of {args.group_size} do not divide the inputs", layer.name


def _expected(layer: _Layer, args: QuantizationArgs, form: str) -> dict[str, tuple[Sequence[str], tuple[int, ...]]]:
    """Types and shape of each tensor that a layer is stored as."""
    groups = layer.inputs // _size(layer, args)
    scale = {"_scale": (FLOATS, (layer.outputs, groups))}
    if form == FLOAT8:
        return {"": (("F8_E4M3",), (layer.outputs, layer.inputs)), **scale}
    if form == PLAIN:
        zeros = {} if args.symmetric else {"_zero_point": (("I8",), (layer.outputs, groups))}
        return {"": (("I8",), (layer.outputs, layer.inputs)), **scale, **zeros}
    words = -(-layer.inputs * args.num_bits // 32)
    zeros = {} if args.symmetric else {"_zero_point": (("I32",), (-(-layer.outputs * args.num_bits // 32), groups))}
    return {"_packed": (("I32",), (layer.outputs, words)), "_shape": (("I64",), (2,)), **scale, **zeros}


def _no_architecture(model: nn.Module) -> Iterator[str]:
    if isinstance(model, SmallModel) or not type(model).__module__.startswith("transformers."):
        yield f"it has no {type(model).__name__}"


def _of_linear(schemes: Mapping[str, QuantizationScheme], layers: Sequence[_Layer]) -> dict[str, QuantizationScheme]:
    """Those of blocks and heads that stand alone: an embedding is looked up, and a head tied to one goes with it."""
    used = {layer.group for layer in layers if not (layer.embeds or layer.tied)}
    return {name: scheme for name, scheme in schemes.items() if name in used}


def _no_lookup(layers: Sequence[_Layer], forms: Mapping[str, str]) -> Iterator[str]:
    if any(layer.embeds and forms[layer.group or ""] != PACKED for layer in layers):
        yield "it looks up packed codes only, and these of the embedding are int8, as transformers wants them"


def _no_kernel(
    quantization: Mapping[str, Any], schemes: Mapping[str, QuantizationScheme], forms: Mapping[str, str]
) -> Iterator[str]:
    for name, scheme in schemes.items():
        if lacking := _lacking(scheme, forms[name]):
            yield f"{_named(scheme)}: {lacking}"
    if quantization.get("kv_cache_scheme") is not None and not _fp8_cache(quantization["kv_cache_scheme"]):
        yield "its caches of keys and values are FP8 per tensor"


def _lacking(scheme: QuantizationScheme, form: str) -> str:
    """Why there is no kernel for it; nothing where there is one."""
    args, inputs = _weights(scheme), scheme.input_activations
    if _is_fp8(args, inputs):
        return ""
    if args.type != "int" or args.dynamic:
        return "only stored whole numbers are described here"
    if inputs is not None:
        dynamic = inputs.num_bits == 8 and inputs.strategy == "token" and inputs.dynamic
        symmetric = args.num_bits == 8 and args.strategy in ("channel", "tensor") and args.symmetric
        return (
            ""
            if dynamic and symmetric
            else "of inputs it rounds, its kernel has W8A8 per token over symmetric channels"
        )
    if form != PACKED:
        return "weights alone must be pack-quantized"
    if args.num_bits not in KERNEL_BITS:
        return OTHER_BITS
    return "of 8 bits it has symmetric ones" if args.num_bits == 8 and not args.symmetric else ""


def _is_fp8(args: QuantizationArgs, inputs: QuantizationArgs | None) -> bool:
    """Its schemes `w8a8_fp8` and `w8a16_fp8`: static scales of whole tensors or channels, inputs scaled as they come or left so."""
    static = args.num_bits == 8 and args.symmetric and not args.dynamic and args.strategy in ("channel", "tensor")
    scaled = inputs is None or (inputs.type == "float" and bool(inputs.dynamic))
    return static and args.type == "float" and scaled


def _fp8_cache(scheme: Mapping[str, Any]) -> bool:
    return (scheme.get("type"), scheme.get("num_bits"), scheme.get("strategy")) == ("float", 8, "tensor")


def _split(layers: Sequence[_Layer]) -> Iterator[tuple[str, str]]:
    """Layers that vLLM fuses and the config keeps apart."""
    groups = {layer.name: layer.group for layer in layers}
    for parts in FUSED:
        for name in groups:
            parent, _, last = name.rpartition(".")
            if last != parts[0]:
                continue
            together = [groups[f"{parent}.{part}"] for part in parts if f"{parent}.{part}" in groups]
            if len(set(together)) > 1:
                yield f"{', '.join(parts)} are one layer there, so they must share bits and groups", parent


def _slow(layers: Sequence[_Layer], schemes: Mapping[str, QuantizationScheme]) -> Iterator[str]:
    if any(_weights(schemes[layer.group]).type == "float" for layer in layers if layer.group):
        yield "on GPUs older than Ada (8.9) with the inputs left as they are"
    weight_only = [
        layer for layer in layers if layer.group and not layer.embeds and schemes[layer.group].input_activations is None
    ]
    sizes = {_weights(schemes[layer.group]).group_size or -1 for layer in weight_only if layer.group}
    if odd := sorted(sizes - set(KERNEL_GROUPS)):
        yield f"groups of {', '.join(map(str, odd))} by slower kernels than 32, 64, 128 or whole rows"
    if any(layer.inputs % CPU_MULTIPLE or layer.outputs % CPU_MULTIPLE for layer in weight_only):
        yield f"sides that {CPU_MULTIPLE} does not divide on GPUs only"


def _weights(scheme: QuantizationScheme) -> QuantizationArgs:
    assert scheme.weights is not None  # `_declared` has seen to it
    return scheme.weights


def _size(layer: _Layer, args: QuantizationArgs) -> int:
    return args.group_size if args.group_size and args.group_size > 0 else layer.inputs


def _named(scheme: QuantizationScheme) -> str:
    args, inputs = _weights(scheme), scheme.input_activations
    groups = f"groups of {args.group_size}" if args.strategy == "group" else f"a scale per {args.strategy}"
    zeros = "" if args.symmetric else ", with zero points"
    if args.type == "float":
        return f"FP8 with {groups}, inputs {'scaled as they come' if inputs else 'as they are'}"
    return f"W{args.num_bits}A{inputs.num_bits if inputs else 16} with {groups}{zeros}"


def _gathered(faults: Iterable[tuple[str, str]]) -> list[str]:
    """Each fault once, with the layers that have it."""
    layers: dict[str, list[str]] = {}
    for fault, layer in faults:
        layers.setdefault(fault, []).append(layer)
    return [
        f"{fault} ({', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''})"
        for fault, names in layers.items()
    ]
