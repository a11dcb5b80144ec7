"""What turns text or pictures into numbers, compared: a tokenizer's vocabulary, and the settings beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmos_cli.core.listing import read_text
from llmos_cli.core.manifest import Manifest
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.data.tokenizer_config import FILE as SETTINGS
from llmos_cli.data.tokenizer_config import LOADING
from llmos_cli.operations.changed import Changed, changed

WEIGHTS = (".safetensors", ".safetensors.index.json")
CODE = ".py"
"""Of a model's own module: what it computes, not what it is given."""
VOCABULARY = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens, and how many of them have the same number on both sides; None where a side has none."""

    before: int | None
    after: int | None
    same: int


@dataclass(frozen=True)
class ProcessorDiff:
    """`settings` under `file: key`; `vocabulary` is None where both have the same one."""

    settings: Sequence[Changed]
    vocabulary: Vocabulary | None


def files(manifest: Manifest) -> dict[str, str]:
    """Their names and hashes."""
    named = {name: entry.sha256 for name, entry in manifest.tree.items() if not name.endswith((*WEIGHTS, CODE))}
    return {name: sha256 for name, sha256 in named.items() if name not in ("config.json", "generation_config.json")}


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Equal where two read alike: their files by their hashes, but for what transformers may have noted of how a tokenizer was loaded."""
    named = files(checkpoint.manifest)
    settings = _json(checkpoint.path / SETTINGS) if SETTINGS in named else None
    if isinstance(settings, Mapping):
        named[SETTINGS] = json.dumps(_settings(settings), sort_keys=True)
    return named


def compare(before: Path, after: Path, one: Manifest, other: Manifest) -> ProcessorDiff:
    """Of two checkpoint directories; a file that is not there any more (`rm`) is compared by its hash alone."""
    mine, theirs = files(one), files(other)
    differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    settings: list[Changed] = []
    vocabulary = None
    for name in differing:
        left, right = _json(before / name), _json(after / name)
        if not name.endswith(".json") or (name in mine and left is None) or (name in theirs and right is None):
            settings.append(Changed(name, mine.get(name), theirs.get(name)))
            continue
        if name == VOCABULARY:
            vocabulary = _vocabulary(left, right)
        settings += changed(_settings(left), _settings(right), f"{name}: ")
    return ProcessorDiff(settings, vocabulary)


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (FileNotFoundError, ValueError):
        return None


def _settings(value: Any) -> Mapping[str, Any]:
    """Without the vocabulary, which is told by its size, and how it was loaded."""
    if not isinstance(value, Mapping):
        return {}
    kept = {key: item for key, item in value.items() if key not in ("added_tokens", *LOADING)}
    model = kept.get("model")
    if isinstance(model, Mapping):
        kept["model"] = {key: item for key, item in model.items() if key not in ("vocab", "merges")}
    return kept


def _vocabulary(before: Any, after: Any) -> Vocabulary | None:
    mine, theirs = dict(_tokens(before)), dict(_tokens(after))
    if mine == theirs:
        return None
    same = sum(theirs.get(token) == number for token, number in mine.items())
    return Vocabulary(len(mine) if before else None, len(theirs) if after else None, same)


def _tokens(tokenizer: Any) -> Iterator[tuple[str, int]]:
    """A unigram model lists its tokens by number, the others say the number of each."""
    if not isinstance(tokenizer, Mapping):
        return
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    else:
        yield from ((entry[0], number) for number, entry in enumerate(vocabulary))
    yield from ((token["content"], token["id"]) for token in tokenizer.get("added_tokens") or ())
