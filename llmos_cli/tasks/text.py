"""What the tasks on text share: which tokenizer, and whether the model is long enough for the sequences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import urls
from llmos_cli.data.cache import workspace_of
from llmos_cli.data.tokenize import bpe, existing
from llmos_cli.errors import UsageError
from llmos_cli.models.build import positions_before
from llmos_cli.options.data import DataOptions
from llmos_cli.options.model import ModelOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

POSITIONS = ("max_position_embeddings", "n_positions")
"""Keys under which transformers' configurations keep the longest sequence."""


def tokenizer_for(
    texts: Sequence[str], data: DataOptions, *, processor: Path | None, key: Any, cache: Path, classifies: bool
) -> PreTrainedTokenizerFast:
    """The checkpoint's own, else the one that `data.tokenizer` names, else a BPE of the training texts, which `key` names.

    Its `model_max_length` is the sequence length, so that a checkpoint cuts texts at prediction as it did in training.
    """
    if processor is not None:
        tokenizer = existing(processor)
    elif data.tokenizer.type == "from":
        if not data.tokenizer.path:
            raise UsageError("data.tokenizer.path is not set", hint="`type: from` needs a directory or a hub id there.")
        directory = workspace_of(cache) / urls.path(data.tokenizer.path)
        tokenizer = existing(directory if directory.is_dir() else data.tokenizer.path)
    else:
        tokenizer = bpe(texts, vocab_size=data.tokenizer.vocab_size, key=key, cache=cache, classifies=classifies)
    tokenizer.model_max_length = data.sequence_length
    return tokenizer


def text_facts(tokenizer: PreTrainedTokenizerFast, data: DataOptions) -> dict[str, Any]:
    """The configuration keys that a tokenizer decides."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {name: getattr(tokenizer, name) for name in special if getattr(tokenizer, name) is not None}
    return {"vocab_size": len(tokenizer), **ids, "sequence_length": data.sequence_length}


def length_of(tokenizer: PreTrainedTokenizerFast, facts: Mapping[str, Any]) -> int:
    """The longest sequence a checkpoint was made for: its tokenizer says so, the positions of its config.json bound it."""
    return min([tokenizer.model_max_length, *positions(facts)])


def positions(config: Mapping[str, Any]) -> list[int]:
    """The longest sequences that a config.json says its model takes; none where it does not say."""
    before = positions_before(config.get("model_type", ""), config.get("pad_token_id"))
    return [int(config[name]) - before for name in POSITIONS if config.get(name)]


def check_length(data: DataOptions, model: ModelOptions, processor: Path | None) -> None:
    """Refuse sequences longer than the positions that the model has or is asked to have."""
    config = config_of(processor) if processor is not None else {}
    limits = [*(int(asked) for name in POSITIONS if (asked := model.width(name))), *positions(config)]
    if limits and data.sequence_length > min(limits):
        raise UsageError(
            f"data.sequence_length is {data.sequence_length}, but the model has {min(limits)} positions",
            hint=f"Set data.sequence_length to at most {min(limits)}.",
        )


def config_of(processor: Path) -> dict[str, Any]:
    """The checkpoint's config.json; empty for a directory with a tokenizer alone."""
    path = processor / "config.json"
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return loaded
