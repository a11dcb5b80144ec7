"""GGUF files: written for Llama models (llama.cpp and its kin read them), read back by transformers.

Rows of the query and key projections are reordered on writing, for GGUF rotates neighbouring features where transformers
rotates halves. Norms are fp32; matrices F32, F16, BF16 or blocks of codes (`gguf_blocks`), the checkpoint's own where they fit.
Embeddings and the head are Q8_0 where the rest has 4 bits. One tensor is in memory at a time.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.models import gguf_blocks, headers
from llmos_cli.models.codes import stored_codes
from llmos_cli.models.dequantize import dense_weights
from llmos_cli.models.gguf_blocks import Blocks
from llmos_cli.models.load import load_config
from llmos_cli.models.quantized import Quantized

TYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1", "q4_k": "Q4_K",
}  # fmt: skip
FILE_TYPES = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_S"}
"""Where the file's own type is not `MOSTLY_` and the kind."""
FEW_BITS = ("Q4_0", "Q4_1", "Q4_K")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Within a block; `model.layers.N.` becomes `blk.N.`."""
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
UNREADABLE = (
    *(ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, RuntimeError, AssertionError, MemoryError),
    struct.error,
)
"""What transformers' reader raises on bytes that are no GGUF, or one it does not know: it checks nothing itself."""
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Kinds of tokens."""


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
    _check(config, dtype)
    with dense_weights(source, config, torch.float32) as dense, stored_codes(source) as codes:
        kinds = _kinds(source, codes, TYPES[dtype] if dtype else None)
        writer = gguf.GGUFWriter(file, "llama")
        _write_settings(writer, gguf, config, max(set(kinds.values()), key=list(kinds.values()).count))
        if licence:
            writer.add_license(licence)
        _write_tokenizer(writer, source, config.vocab_size)
        shapes = headers.dense_shapes(headers.of_directory(source))
        for name, kind in kinds.items():
            kind_of = gguf.GGMLQuantizationType[kind]
            shape, size = _described(gguf, shapes[name], kind_of)
            writer.add_tensor_info(_gguf_name(name), shape, np.dtype(np.uint8), size, raw_dtype=kind_of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        kept = 0
        for name, kind in kinds.items():
            bytes_OB, own = _encoded(gguf, name, kind, dense, codes, config)
            writer.write_tensor_data(bytes_OB)
            kept += own
        writer.close()
    matrices = [kind for name, kind in kinds.items() if len(shapes[name]) > 1]
    return Written({kind: matrices.count(kind) for kind in dict.fromkeys(matrices)}, len(codes), kept)


def read(file: Path) -> PreTrainedModel:
    """The model of a GGUF file, dequantized to fp32. Corrupt where it cannot be read."""
    _package()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the reader's own progress bar knows no switch
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype="float32",
                output_loading_info=True,
            )
    except UNREADABLE as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise Corrupt(f"{file.name} cannot be read: {reason}", hint="copy or download it again") from problem
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise Corrupt(
            f"{file.name} lacks {len(missing)} of the model's tensors, {missing[0]} first",
            hint="copy or download it again",
        )
    found: PreTrainedModel = model.eval()
    if hasattr(found.config, "quantization_config"):
        del found.config.quantization_config
    return found


def licence(file: Path) -> str:
    """The licence that the file's own metadata names, "" where none."""
    field = _package().GGUFReader(file).get_field("general.license")
    return str(field.contents()) if field is not None else ""


def _package() -> Any:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("GGUF needs the package gguf", hint="pip install 'llmos-cli[gguf]'")
    import gguf

    return gguf


def _check(config: Any, dtype: str | None) -> None:
    if dtype not in (None, *TYPES):
        raise UsageError(f"GGUF has no type {dtype} here", hint=f"there are {', '.join(TYPES)}")
    if config.model_type != "llama":
        raise UsageError(
            f"GGUF export knows llama, not {config.model_type}", hint="export --format hf, and convert that"
        )
    if config.attention_bias or config.mlp_bias or config.rope_parameters.get("rope_type") != "default":
        raise UsageError(
            "GGUF export knows Llama without biases and with plain rotary positions only",
            hint="export --format hf, and convert that",
        )


def _write_settings(writer: Any, gguf: Any, config: Any, kind: str) -> None:
    writer.add_file_type(int(gguf.LlamaFileType[FILE_TYPES.get(kind, f"MOSTLY_{kind}")]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: Any, source: Path, vocab_size: int) -> None:
    """A byte-level BPE: llama.cpp's `gpt2` tokenizer. Rows of the embedding beyond the tokenizer are marked unused."""
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {added["content"] for added in description["added_tokens"] if added["special"]}
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [by_id.get(index, f"[UNUSED{index}]") for index in range(vocab_size)]
    kinds = [
        CONTROL if token in special else NORMAL if index in by_id else UNUSED for index, token in enumerate(tokens)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_words(description))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [" ".join(merge) if isinstance(merge, list) else merge for merge in description["model"]["merges"]]
    )
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _words(description: dict[str, Any]) -> str:
    """llama.cpp's name of the rule that cuts text into words."""
    rule = description["pre_tokenizer"] or {}
    rules = rule.get("pretokenizers", [rule])
    kinds = [(part.get("type"), part.get("individual_digits"), part.get("use_regex")) for part in rules]
    if description["model"]["type"] == "BPE" and kinds == [("ByteLevel", None, True)]:
        return "gpt-2"
    if description["model"]["type"] == "BPE" and kinds == [("Digits", True, None), ("ByteLevel", None, True)]:
        return "smollm"
    raise UsageError(
        "GGUF export knows byte-level BPE tokenizers with the words of gpt-2 or smollm, not this one",
        hint="export --format hf, and convert that with llama.cpp's convert_hf_to_gguf.py",
    )


def _kinds(source: Path, codes: Mapping[str, Quantized], wanted: str | None) -> dict[str, str]:
    """The kind of each tensor on disk, tied ones once: GGUF then uses the embedding as output."""
    return {
        name: _kind(name, shape, codes.get(name), wanted)
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
    heads = _heads(name, config)
    if kind not in gguf_blocks.SEARCHES:
        value = _neighbours(dense[name], heads).numpy()
        return gguf.quants.quantize(value, gguf.GGMLQuantizationType[kind]), False
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


def _gguf_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.weight"
    index, _, inner = module.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{NAMES[inner]}.weight"


def _heads(name: str, config: Any) -> int:
    """Of a projection whose rows are rotated; 0 for all others."""
    if name.endswith("self_attn.q_proj.weight"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.endswith("self_attn.k_proj.weight") else 0


def _neighbours(rows_O: Tensor, heads: int) -> Tensor:
    """Rows of each head interleaved, so that rotated pairs (i, i + half) stand side by side."""
    if not heads:
        return rows_O
    outputs = len(rows_O)
    halves_H2h = rows_O.unflatten(0, (heads, 2, outputs // heads // 2))
    moved_O: Tensor = halves_H2h.transpose(1, 2).flatten(0, 2).contiguous()
    return moved_O
