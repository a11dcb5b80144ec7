"""Writing quantized checkpoints from a dense one, shard by shard.

Linear layers are stored as compressed-tensors (`pack-quantized`; `int-quantized` for W8A8), which transformers and vLLM read.
Token embeddings and the head are int8 there, never packed and their inputs never rounded: transformers 5.23 looks for an embedding's
`weight`, which packing replaces. A tied head has scales of its own beside the embedding's only codes, so that readers tie them.
Convolutions and LSTMs have no format there: in our own architectures they are int8 per output channel under their own name,
with a `_scale` beside them, listed in config.json as `llmos_int8`. `dequantize` reads all of it back.

Shapes: O outputs, I inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models import blocks, headers, packing
from llmos_cli.models.architectures.base import SmallModel
from llmos_cli.models.dequantize import CONFIG_KEY, INT8_KEY, is_quantized
from llmos_cli.models.load import skeleton
from llmos_cli.models.save import Shard, stored_names, write_streamed

PACKED, PLAIN, FLOATS = "pack-quantized", "int-quantized", "float-quantized"
"""Words of packed codes; int8 codes as they are; 8-bit floats."""
MIXED = "mixed-precision"
"""What a config says whose groups are stored in different forms, each its own."""
Scheme = Literal["weights", "w8a8", "fp8"]
"""`weights`: codes for the weights alone; `w8a8`: 8-bit weights, and inputs rounded to int8 as they come; `fp8`: both as e4m3."""
FORMS: Mapping[Scheme, str] = {"weights": PACKED, "w8a8": PLAIN, "fp8": FLOATS}


@dataclass(frozen=True)
class Quantized:
    """One weight as codes. `codes` int8 (or float8_e4m3fn) in the weight's own shape, `scales_OG`, `zeros_OG` (codes; None: symmetric);
    `group_size` inputs share a scale, all of them with -1. Round the scales to the dtype of the dense weight *before* choosing
    codes: the file keeps them so. With zeros anywhere all are stored in fp32, for transformers multiplies them out in their own dtype."""

    codes: Tensor
    scales_OG: Tensor
    bits: int
    group_size: int = -1
    zeros_OG: Tensor | None = None

    def dense(self) -> Tensor:
        return packing.dequantize(self.codes, self.scales_OG, self.zeros_OG)


class Kind(NamedTuple):
    """What a quantization config says of one weight; `form`: how it is stored, `inside`: a block's, not an embedding or head,
    `rounds`: the layer rounds its inputs."""

    bits: int
    group_size: int
    symmetric: bool
    form: str
    inside: bool
    rounds: bool

    @classmethod
    def of(cls, quantized: Quantized, scheme: Scheme, *, inside: bool, rounds: bool = True) -> Kind:
        # Weights alone have no kernel as int8 but packed; 8-bit floats have no other form.
        form = PACKED if inside and scheme == "w8a8" and not rounds else FORMS[scheme] if inside else PLAIN
        rounds = rounds and inside and form != PACKED
        return cls(quantized.bits, quantized.group_size, quantized.zeros_OG is None, form, inside, rounds)


def why_not(model: nn.Module, module: nn.Module) -> str | None:
    """Why a layer cannot be stored quantized; None where it can."""
    if isinstance(model, PreTrainedModel) and _merges_experts(model.config.model_type):
        return f"no method turns the experts of a {model.config.model_type} into codes, and transformers loads no file of codes without them"
    if isinstance(module, nn.Linear):
        return None
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d | nn.LSTM):
        return f"{kind} has no quantized format"
    return None if isinstance(model, SmallModel) else f"transformers reads no format that holds a quantized {kind}"


def unpackable(model: PreTrainedModel) -> str | None:
    """Why transformers would not load packed codes of this model; None where it would.

    Its initialisation runs over a model whose weights packing has replaced, and that of some architectures (ModernBERT, Falcon,
    Mamba, DINOv2) looks for them. So it is run, over modules without storage.
    """
    if not type(model).__module__.startswith("transformers."):
        return None
    with torch.device("meta"):
        probe: PreTrainedModel = type(model)._from_config(model.config)
    for layer in blocks.layers(probe).values():
        if isinstance(layer, nn.Linear):
            del layer._parameters["weight"]
    try:
        with torch.no_grad():
            for module in probe.modules():
                probe._init_weights(module)
    except AttributeError:
        kind = model.config.model_type
        return f"transformers loads no packed codes of a {kind}: its initialisation looks for the weights that they replace"
    return None


@cache
def _merges_experts(model_type: str) -> bool:
    """Whether transformers makes one tensor of a file's experts: beside compressed-tensors it takes these for codes in any case."""
    found = get_checkpoint_conversion_mapping(model_type) or ()
    converters = [each for each in found if isinstance(each, WeightConverter)]
    return any(isinstance(operation, MergeModulelist) for each in converters for operation in each.operations)


def write_quantized(
    directory: Path,
    source: Path,
    layers: Mapping[str, Quantized],
    scheme: Scheme = "weights",
    changed: Mapping[str, Tensor] = MappingProxyType({}),
    unrounded: Collection[str] = (),
) -> None:
    """Write checkpoint `source` to `directory` with some weights as codes, one shard in memory at a time.

    `layers`: by module name, or by the weight's full name where a module has several (an LSTM); each is looked up when its shard
    is written. `changed`: dense tensors, by their names in the files, that are not the source's own any more; `unrounded`: modules
    whose inputs stay as they are, whatever the scheme.
    """
    config, model, entries = _dense_config(source), skeleton(source), headers.of_directory(source)
    modules, inside, twins = dict(model.named_modules()), blocks.layers(model), _twins(model)
    parameters = {name for name, _ in model.named_parameters()}
    weights = {key if key in parameters else f"{key}.weight": key for key in layers}
    kinds = {
        name: Kind.of(layers[key], scheme, inside=module in inside, rounds=module not in unrounded)
        for name, key in weights.items()
        for module in [name.removesuffix(".weight")]
        if isinstance(modules.get(name.removesuffix(".weight")), nn.Linear | nn.Embedding)
    }
    stored = _stored_names(weights, model, entries)
    directory.mkdir(parents=True, exist_ok=True)
    _copy_others(source, directory)
    becoming = {
        stored[name]: _Becoming(key, name in kinds and kinds[name].form == PACKED, tuple(twins.get(name, ())))
        for name, key in weights.items()
    }
    _write_weights(directory, entries, layers, becoming, changed)
    kinds |= {twin: kind for name, kind in kinds.items() for twin in twins.get(name, ())}
    config |= _config_entries(
        {name.removesuffix(".weight"): kind for name, kind in kinds.items()},
        sorted(stored[name] for name in weights if name not in kinds),
        linear=[name for name, module in modules.items() if isinstance(module, nn.Linear)],
    )
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _Becoming(NamedTuple):
    """What a stored tensor becomes: the codes of `key`, packed or not, and scales for the `twins` that are tied to it."""

    key: str
    packed: bool
    twins: tuple[str, ...]


def _twins(model: PreTrainedModel) -> dict[str, list[str]]:
    """The weights that are tied to another, by that other's name."""
    found: dict[str, list[str]] = {}
    for twin, name in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        found.setdefault(name, []).append(twin)
    return found


def _dense_config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
    if is_quantized(config):
        raise UsageError(f"{source.name} is quantized already", hint="quantize the checkpoint it was made from")
    return config


def _stored_names(names: Iterable[str], model: PreTrainedModel, entries: Mapping[str, headers.Entry]) -> dict[str, str]:
    """Where each weight is stored: transformers keeps some architectures under their original names."""
    converted = stored_names(model, entries)
    found = {name: name if name in entries else converted.get(name, "") for name in names}
    if lost := [name for name, place in found.items() if place not in entries]:
        raise LlmosError(
            f"{lost[0]} is not stored as one tensor, so it cannot hold codes", hint="leave it out with `ignore`"
        )
    return found


def _copy_others(source: Path, directory: Path) -> None:
    """Tokenizer, generation settings, card, licence: whatever is neither weights nor ours to rewrite."""
    for file in sorted(source.iterdir()):
        skip = file.suffix == ".safetensors" or file.name in (headers.INDEX, "config.json", "manifest.json")
        if file.is_file() and not skip:
            shutil.copyfile(file, directory / file.name)


def _write_weights(
    directory: Path,
    entries: Mapping[str, headers.Entry],
    layers: Mapping[str, Quantized],
    becoming: Mapping[str, _Becoming],
    changed: Mapping[str, Tensor],
) -> None:
    widened = any(layer.zeros_OG is not None for layer in layers.values())
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)

    def read(group: list[str]) -> Shard:
        file, shard = entries[group[0]].file, dict[str, Tensor]()
        if not any(name in becoming or name in changed for name in group):
            return file
        with safe_open(file, "pt") as opened:
            for name in group:
                value = opened.get_tensor(name)
                if name in becoming:
                    key, packed, twins = becoming[name]
                    shard |= _stored(name, layers[key], value, pack=packed, widened=widened)
                    shard |= {f"{twin}_scale": shard[f"{name}_scale"].clone() for twin in twins}
                else:
                    shard[name] = changed[name].to(value.dtype) if name in changed else value
        return shard

    write_streamed([by_file[file] for file in sorted(by_file)], read, directory)


def _stored(name: str, quantized: Quantized, dense: Tensor, *, pack: bool, widened: bool) -> dict[str, Tensor]:
    """The tensors one weight becomes. Scales are kept in the dense weight's dtype, or as they are in fp32: `widened`."""
    if quantized.codes.shape != dense.shape:
        raise LlmosError(
            f"{name} is {list(dense.shape)} but its codes are {list(quantized.codes.shape)}",
            hint="the method must return one code for each weight",
        )
    scales_OG = quantized.scales_OG.to(dense.dtype)
    stored = {f"{name}_scale": scales_OG.float() if widened else scales_OG}
    zeros_OG = quantized.zeros_OG
    if not pack:
        zeros = {} if zeros_OG is None else {f"{name}_zero_point": zeros_OG.to(torch.int8)}
        return stored | zeros | {name: quantized.codes}
    stored |= {
        f"{name}_packed": packing.pack(quantized.codes, quantized.bits),
        f"{name}_shape": torch.tensor(dense.shape, dtype=torch.int64),
    }
    if zeros_OG is not None:
        stored[f"{name}_zero_point"] = packing.pack(zeros_OG.t(), quantized.bits).t()
    return stored


def _config_entries(kinds: Mapping[str, Kind], int8: list[str], *, linear: Sequence[str]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if int8:
        entries[INT8_KEY] = int8
    if kinds:
        entries[CONFIG_KEY] = _quantization_config({name: kinds[name] for name in sorted(kinds)}, linear)
    return entries


def _quantization_config(layers: Mapping[str, Kind], linear: Sequence[str]) -> dict[str, Any]:
    """The shape compressed-tensors 0.20 writes. Layers of one kind are targeted as `Linear`, several kinds by name; embeddings and
    heads always by name, which goes before class."""
    kinds: dict[Kind, list[str]] = {}
    for name, kind in layers.items():
        kinds.setdefault(kind, []).append(name)
    alone = len([kind for kind in kinds if kind.inside]) == 1
    forms = {kind.form for kind in kinds}
    groups = {
        f"group_{index}": _group(kind, ["Linear"] if alone and kind.inside else names, formed=len(forms) > 1)
        for index, (kind, names) in enumerate(sorted(kinds.items()))
    }
    return {
        "quant_method": "compressed-tensors",
        "format": MIXED if len(forms) > 1 else next(iter(forms)),
        "quantization_status": "compressed",
        "ignore": sorted(set(linear) - set(layers)),
        "kv_cache_scheme": None,
        "config_groups": groups,
    }


def _group(kind: Kind, targets: list[str], *, formed: bool) -> dict[str, Any]:
    """`formed`: the form is not the same for all. That of an embedding is always said: readers would guess another."""
    kind_of = "float" if kind.form == FLOATS else "int"
    inputs = _args(kind_of, 8, "token", symmetric=True, dynamic=True)
    return {
        "targets": targets,
        "input_activations": inputs if kind.rounds else None,
        "output_activations": None,
        "weights": _weight_args(kind_of, kind.bits, kind.group_size, kind.symmetric),
        **({"format": kind.form} if formed or not kind.inside else {}),
    }


def _weight_args(kind: str, bits: int, group_size: int, symmetric: bool) -> dict[str, Any]:
    strategy = "channel" if group_size == -1 else "group"
    args = _args(kind, bits, strategy, symmetric=symmetric, dynamic=False)
    return args | {"group_size": None if group_size == -1 else group_size, "observer": "minmax"}


def _args(kind: str, bits: int, strategy: str, *, symmetric: bool, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None,
        "dynamic": dynamic,
        "actorder": None,
    }
