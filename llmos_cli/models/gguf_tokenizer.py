"""A tokenizer in GGUF's words: byte-level BPE with a rule that llama.cpp has a name for, or BPE over characters as SentencePiece has it.

llama.cpp has no merges for the second kind: of two neighbouring pieces it joins those whose piece has the highest score. A piece's score is
minus the rank of the first merge that makes it, so that it joins in the order that the merges say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from llmos_cli.errors import UsageError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens."""
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS: Mapping[str, str] = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}
"""llama.cpp's name of a rule that cuts text into words, by its pattern."""
NEVER = -1e6
"""The score of a piece that no merge makes."""


def write_tokenizer(writer: Any, source: Path, vocab_size: int) -> None:
    """The tokenizer of the checkpoint `source`. Rows of the embedding beyond its vocabulary are marked unused."""
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise _unknown(f"{model['type']} tokenizers")
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [by_id.get(index, f"[UNUSED{index}]") for index in range(vocab_size)]
    if model.get("byte_fallback"):
        _write_pieces(writer, description, tokens)
    else:
        _write_bytes(writer, description)
    writer.add_token_list(tokens)
    writer.add_token_types(_kinds(description, tokens, set(by_id.values())))
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_bytes(writer: Any, description: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_words(description))
    writer.add_token_merges([" ".join(merge) for merge in _merges(description)])


def _write_pieces(writer: Any, description: dict[str, Any], tokens: list[str]) -> None:
    rank: dict[str, int] = {}
    for number, merge in enumerate(_merges(description)):
        rank.setdefault("".join(merge), number)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([float(-rank[token]) if token in rank else NEVER for token in tokens])
    writer.add_add_space_prefix(_begins_with_space(description))


def _merges(description: dict[str, Any]) -> list[list[str]]:
    """Older files have a pair as one string."""
    return [merge if isinstance(merge, list) else merge.split(" ") for merge in description["model"]["merges"]]


def _kinds(description: dict[str, Any], tokens: list[str], known: set[str]) -> list[int]:
    added = {entry["content"]: entry["special"] for entry in description["added_tokens"]}
    model = description["model"]

    def kind(token: str) -> int:
        if token not in known:
            return UNUSED
        if token == model.get("unk_token"):
            return UNKNOWN
        if token in added:
            return CONTROL if added[token] else USER_DEFINED
        return BYTE if model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token) else NORMAL

    return [kind(token) for token in tokens]


def _parts(rule: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or normalizer."""
    return [] if rule is None else list(rule.get(inner, [rule]))


def _begins_with_space(description: dict[str, Any]) -> bool:
    before = _parts(description["normalizer"], "normalizers") + _parts(description["pre_tokenizer"], "pretokenizers")
    prepended = any(part["type"] == "Prepend" for part in before)
    return prepended or any(part["type"] == "Metaspace" and part["prepend_scheme"] != "never" for part in before)


def _words(description: dict[str, Any]) -> str:
    """llama.cpp's name of the rule that cuts text into words."""
    parts = _parts(description["pre_tokenizer"], "pretokenizers")
    kinds = [(part["type"], part.get("individual_digits"), part.get("use_regex")) for part in parts]
    if kinds == [("ByteLevel", None, True)]:
        return "gpt-2"
    if kinds == [("Digits", True, None), ("ByteLevel", None, True)]:
        return "smollm"
    pattern = str(parts[0].get("pattern", {}).get("Regex")) if parts else ""
    if kinds == [("Split", None, None), ("ByteLevel", None, False)] and pattern in WORDS:
        return WORDS[pattern]
    raise _unknown("this tokenizer's rule for words")


def _unknown(what: str) -> UsageError:
    return UsageError(
        f"GGUF export does not know {what}: byte-level BPE with the words of gpt-2, smollm, llama 3 or qwen 2, or BPE with byte fallback",
        hint="export --format hf, and convert that with llama.cpp's convert_hf_to_gguf.py",
    )
