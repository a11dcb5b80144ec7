"""GGUF files: written for Llama models (llama.cpp and its kin read them), read back by transformers.

Rows of the query and key projections are reordered on writing, for GGUF rotates neighbouring features where transformers
rotates halves. Norms are fp32, matrices F16, BF16 or Q8_0 (blocks of 32 weights with an fp16 scale).

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, UsageError

TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "q8_0": "Q8_0"}
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
Q8_BLOCK = 32
UNREADABLE = (
    *(ValueError, KeyError, IndexError, TypeError, OverflowError, OSError, RuntimeError, AssertionError, MemoryError),
    struct.error,
)
"""What transformers' reader raises on bytes that are no GGUF, or one it does not know: it checks nothing itself."""
NORMAL, CONTROL, UNUSED = 1, 3, 5
"""Kinds of tokens."""


def write(model: PreTrainedModel, source: Path, file: Path, *, dtype: str) -> None:
    """Write `model` and the tokenizer of directory `source`. `dtype`: a key of TYPES."""
    gguf = _package()
    _check(model, dtype)
    writer = gguf.GGUFWriter(file, "llama")
    _write_settings(writer, gguf, model.config, dtype)
    _write_tokenizer(writer, source, model.config.vocab_size)
    for name, value in _tensors(model):
        kind = _kind(gguf, value, dtype)
        writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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


def _check(model: PreTrainedModel, dtype: str) -> None:
    config = model.config
    if dtype not in TYPES:
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


def _write_settings(writer: Any, gguf: Any, config: Any, dtype: str) -> None:
    writer.add_file_type(
        int(getattr(gguf.LlamaFileType, f"MOSTLY_{TYPES[dtype]}" if dtype != "float32" else "ALL_F32"))
    )
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


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, NDArray[np.float32]]]:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():  # tied ones once: GGUF then uses the embedding as output
        module = name.removesuffix(".weight")
        if module in OUTSIDE:
            yield f"{OUTSIDE[module]}.weight", _array(parameter)
            continue
        index, _, inner = module.removeprefix("model.layers.").partition(".")
        short = NAMES[inner]
        value = _array(parameter)
        yield f"blk.{index}.{short}.weight", _neighbours(value, heads[short]) if short in heads else value


def _neighbours(weight_OI: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head interleaved, so that rotated pairs (i, i + half) stand side by side."""
    outputs, inputs = weight_OI.shape
    halves = weight_OI.reshape(heads, 2, outputs // heads // 2, inputs)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(outputs, inputs))


def _array(parameter: Tensor) -> NDArray[np.float32]:
    return np.asarray(parameter.detach().float().cpu().numpy())


def _kind(gguf: Any, value: NDArray[np.float32], dtype: str) -> Any:
    """Vectors stay fp32; rows that do not divide into blocks of 32 cannot be Q8_0."""
    kinds = gguf.GGMLQuantizationType
    if value.ndim == 1:
        return kinds.F32
    if dtype == "q8_0" and value.shape[1] % Q8_BLOCK:
        return kinds.F16
    return kinds[TYPES[dtype]]
