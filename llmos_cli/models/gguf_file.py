"""GGUF files: written for the architectures that llama.cpp and its kin run (`gguf_architectures`), and read.

Where llama.cpp rotates neighbouring features and transformers halves, rows of the query and key projections are reordered on writing.
Vectors are fp32; matrices F32, F16, BF16 or blocks of codes (`gguf_blocks`), the checkpoint's own where they fit.
Embeddings and the head are Q8_0 where the rest has 4 bits. One tensor is in memory at a time.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.models import described, gguf_architectures, gguf_blocks, headers
from llmos_cli.models.codes import stored_codes
from llmos_cli.models.dequantize import dense_weights
from llmos_cli.models.gguf_blocks import Blocks
from llmos_cli.models.gguf_tokenizer import write_tokenizer
from llmos_cli.models.load import load_config
from llmos_cli.models.quantized import Quantized

TYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q4_k": "Q4_K",
}  # fmt: skip
FILE_TYPES = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}
"""Where the file's own type is not `MOSTLY_` and the kind."""
FEW_BITS = ("Q4_0", "Q4_1", "Q4_K")
OUTSIDE = ("token_embd", "output")
"""The embedding and the head: of 8 bits where the rest has 4."""
ROPE_FACTORS = "rope_freqs.weight"
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class Written:
    """`kept` of `quantized` matrices have the checkpoint's own codes; `kinds` counts the matrices of each kind."""

    kinds: Mapping[str, int]
    quantized: int
    kept: int


def write(source: Path, file: Path, *, dtype: str | None = None, licence: str = "") -> Written:
    """Write the checkpoint directory `source` with its tokenizer. `dtype`: a key of TYPES; None for the smallest blocks that
    hold each layer's own codes, bf16 for what has none."""
    gguf, config = _package(), load_config(source)
    if dtype not in (None, *TYPES):
        raise UsageError(f"GGUF has no type {dtype} here", hint=f"there are {', '.join(TYPES)}")
    architecture = gguf_architectures.of(config)
    called = names(config)
    with dense_weights(source, config, torch.float32) as dense, stored_codes(source) as codes:
        kinds = _kinds(source, codes, called, TYPES[dtype] if dtype else None)
        writer = gguf.GGUFWriter(file, architecture.name)
        mostly = max(set(kinds.values()), key=list(kinds.values()).count)
        writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES.get(mostly, f"MOSTLY_{mostly}")]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        gguf_architectures.write_settings(writer, architecture, config)
        if licence:
            writer.add_license(licence)
        write_tokenizer(writer, source, config.vocab_size)
        shapes = headers.dense_shapes(headers.of_directory(source))
        factors = gguf_architectures.rope_factors(config)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, np.dtype(np.float32), factors.nbytes)
        for name, kind in kinds.items():
            kind_of = gguf.GGMLQuantizationType[kind]
            shape, size = _described(gguf, shapes[name], kind_of)
            writer.add_tensor_info(called[name], shape, np.dtype(np.uint8), size, raw_dtype=kind_of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        kept = 0
        for name, kind in kinds.items():
            bytes_OB, own = _encoded(gguf, name, kind, dense, codes, config)
            writer.write_tensor_data(bytes_OB)
            kept += own
        writer.close()
    matrices = [kind for name, kind in kinds.items() if len(shapes[name]) > 1]
    return Written({kind: matrices.count(kind) for kind in dict.fromkeys(matrices)}, len(codes), kept)


def names(config: Any) -> Mapping[str, str]:
    """GGUF's name of each tensor, by transformers' own: looked up, so that one that llama.cpp lacks is told."""
    gguf = _package()
    architecture = gguf_architectures.of(config)
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    return _Names(table, config.model_type)


class _Names(dict[str, str]):
    def __init__(self, table: Any, architecture: str) -> None:
        super().__init__()
        self._table, self._architecture = table, architecture

    def __missing__(self, name: str) -> str:
        found = self._table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UsageError(
                f"llama.cpp's {self._architecture} has no {name}", hint="export --format hf, for readers of that"
            )
        self[name] = str(found)
        return self[name]


def read_back(file: Path, model: PreTrainedModel) -> PreTrainedModel:
    """The model as the file has it: by transformers' reader where that knows the architecture, else the tensors put into `model`."""
    architecture = gguf_architectures.of(model.config)
    if architecture.transformers and _plain(model):
        return read(file)
    gguf, called = _package(), names(model.config)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[called[name]]
            value = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type))).reshape(
                parameter.shape
            )
            parameter.copy_(_transformers(name, value, model.config))
    return model


def _plain(model: PreTrainedModel) -> bool:
    """Whether transformers' reader makes the same configuration: it knows no biases of Llama's and no slower frequencies."""
    biased = any(name.endswith("bias") for name, _ in model.named_parameters())
    return gguf_architectures.rope_factors(model.config) is None and not (biased and model.config.model_type == "llama")


def read(file: Path) -> PreTrainedModel:
    """The model of a GGUF file, dequantized to fp32. Corrupt where it cannot be read."""
    with described.believed(f"{file.name} cannot be read", hint=_AGAIN):
        config = _checked(file)
        with contextlib.redirect_stderr(io.StringIO()):  # the reader's own progress bar knows no switch
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                config=config,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype="float32",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    model, info = loaded
    if odd := sorted(info["mismatched_keys"]):
        name, stored, wanted = odd[0]
        raise Corrupt(
            f"{file.name} has {name} in the sizes {list(stored)}, and says of the model that they are {list(wanted)}",
            hint=_AGAIN,
        )
    if missing := sorted(info["missing_keys"]):
        raise Corrupt(f"{file.name} lacks {len(missing)} of the model's tensors, {missing[0]} first", hint=_AGAIN)
    found: PreTrainedModel = model.eval()
    if hasattr(found.config, "quantization_config"):
        del found.config.quantization_config
    return found


def _checked(file: Path) -> PreTrainedConfig:
    """Its configuration. Corrupt where it describes what no model is: read as it is, that would take hours or all memory, or be other
    weights than were written."""
    reader = _package().GGUFReader(file)
    _must_fill(file, reader)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    described.sizes(file, config.to_dict())
    with torch.device("meta"):
        bare = AutoModelForCausalLM.from_config(config)
    described.fits(file, bare, sum(int(tensor.n_elements) for tensor in reader.tensors))
    return config  # type: ignore[no-any-return]


def _must_fill(file: Path, reader: Any) -> None:
    """Corrupt where its tensors are not laid one behind the other, as all writers do: one of another type than was written is."""
    end = reader.data_offset
    for tensor in sorted(reader.tensors, key=lambda each: (int(each.data_offset), int(each.n_bytes))):
        if int(tensor.data_offset) != end:
            raise Corrupt(
                f"{file.name} cannot be read: its tensors lie over one another, or have room between them, at {described.plain(tensor.name)}",
                hint=_AGAIN,
            )
        end += -(-int(tensor.n_bytes) // reader.alignment) * reader.alignment
    if file.stat().st_size - end >= reader.alignment:
        raise Corrupt(f"{file.name} cannot be read: its tensors do not fill it", hint=_AGAIN)


def licence(file: Path) -> str:
    """The licence that the file's own metadata names, "" where none."""
    field = _package().GGUFReader(file).get_field("general.license")
    return described.plain(str(field.contents())) if field is not None else ""


def _package() -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("GGUF needs the package gguf", hint="pip install 'llmos-cli[gguf]'")
    import gguf

    return gguf


def _kinds(
    source: Path, codes: Mapping[str, Quantized], called: Mapping[str, str], wanted: str | None
) -> dict[str, str]:
    """The kind of each tensor on disk, tied ones once: GGUF then uses the embedding as output."""
    return {
        name: _kind(called[name], shape, codes.get(name), wanted)
        for name, shape in headers.dense_shapes(headers.of_directory(source)).items()
    }


def _kind(name: str, shape: tuple[int, ...], quantized: Quantized | None, wanted: str | None) -> str:
    """Vectors stay fp32; rows that do not divide into blocks take smaller ones, or none."""
    if len(shape) == 1:
        return "F32"
    if wanted is None:
        return (gguf_blocks.smallest(quantized) if quantized else None) or "BF16"
    if wanted in FEW_BITS and name.removesuffix(".weight") in OUTSIDE:
        wanted = "Q8_0"
    if wanted == "Q4_K" and not gguf_blocks.fits(wanted, shape[1]):
        wanted = "Q4_1"
    return wanted if wanted not in gguf_blocks.SEARCHES or gguf_blocks.fits(wanted, shape[1]) else "F16"


def _described(gguf: Any, shape: tuple[int, ...], kind: Any) -> tuple[tuple[int, ...], int]:
    """The shape in bytes that the writer wants of blocks, and the size."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row = shape[-1] // per_block * block_bytes
    return (*shape[:-1], row), int(np.prod(shape[:-1], dtype=np.int64)) * row


def _encoded(
    gguf: Any,
    name: str,
    kind: str,
    dense: Mapping[str, Tensor],
    codes: Mapping[str, Quantized],
    config: PreTrainedConfig,
) -> tuple[NDArray[Any], bool]:
    """The bytes of a tensor, and whether they hold the checkpoint's own codes."""
    architecture, heads = gguf_architectures.of(config), _heads(name, config)
    if kind not in gguf_blocks.SEARCHES:
        value_O = _neighbours(dense[name], heads) + float(architecture.plus_one and _is_norm(name))
        return gguf.quants.quantize(value_O.numpy(), gguf.GGMLQuantizationType[kind]), False
    found: Blocks | None = None
    if name in codes:
        own = codes[name]
        moved = replace(
            own,
            codes=_neighbours(own.codes, heads),
            scales_OG=_neighbours(own.scales_OG, heads),
            zeros_OG=None if own.zeros_OG is None else _neighbours(own.zeros_OG, heads),
        )
        found = gguf_blocks.of_codes(moved, kind)
    found = found or gguf_blocks.of_dense(_neighbours(dense[name], heads), kind)
    return found.bytes_OB.numpy(), found.kept


def _transformers(name: str, value_O: Tensor, config: Any) -> Tensor:
    """A tensor of the file in transformers' order."""
    heads = _heads(name, config)
    if heads:
        value_O = value_O.unflatten(0, (heads, len(value_O) // heads // 2, 2)).transpose(1, 2).flatten(0, 2)
    return value_O - float(gguf_architectures.of(config).plus_one and _is_norm(name))


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def _heads(name: str, config: Any) -> int:
    """Of a projection whose rows are reordered; 0 for all others."""
    module = name.removesuffix(".weight").removesuffix(".bias")
    if not gguf_architectures.of(config).neighbours:
        return 0
    if module.endswith("self_attn.q_proj"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if module.endswith("self_attn.k_proj") else 0


def _neighbours(rows_O: Tensor, heads: int) -> Tensor:
    """Rows of each head interleaved, so that rotated pairs (i, i + half) stand side by side."""
    if not heads:
        return rows_O
    outputs = len(rows_O)
    halves_H2h = rows_O.unflatten(0, (heads, 2, outputs // heads // 2))
    moved_O: Tensor = halves_H2h.transpose(1, 2).flatten(0, 2).contiguous()
    return moved_O
