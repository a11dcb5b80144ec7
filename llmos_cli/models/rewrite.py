"""Writing a checkpoint that is another one with some weights changed: the same shards, types and companions.

A shard of which nothing changed is the other one's file under a second name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.models import headers
from llmos_cli.models.save import Shard, same_bits, save_config, tensors, write_shards, write_streamed

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rewrite(model: PreTrainedModel, source: Path, directory: Path) -> None:
    """Write `model`, which was loaded from `source` and changed, as `source` was written."""
    rewritten(tensors(model), source, directory)


def rewritten(
    changed: Mapping[str, Tensor], source: Path, directory: Path, added: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """The same of the tensors that are not the source's own any more, by their names in the files, one shard in memory at a time.

    `added`: tensors that the source has not, in a shard of their own.
    """
    directory.mkdir(parents=True, exist_ok=True)
    entries = headers.of_directory(source)
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)

    def read(group: list[str]) -> Shard:
        if group[0] in added:
            return added
        file = entries[group[0]].file
        given = {name: as_stored(changed[name], entries[name]) for name in group if name in changed}
        with safe_open(file, "pt") as opened:
            if all(same_bits(opened.get_tensor(name), value) for name, value in given.items()):
                return file
            return {name: given[name] if name in given else opened.get_tensor(name) for name in group}

    groups = [by_file[file] for file in sorted(by_file)]
    write_streamed([*groups, [*added]] if added else groups, read, directory)
    for file in _companions(source):
        shutil.copyfile(file, directory / file.name)


def write_resized(model: PreTrainedModel, source: Path, directory: Path) -> None:
    """Write `model`, made of the weights of `source` in other shapes: in its types, with its companions, its own configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = headers.of_directory(source)
    usual = usual_dtype(entries)
    save_config(model, directory, dtype=usual)
    state = {
        name: value.to(stored_dtype(name, entries, usual)) if value.is_floating_point() else value
        for name, value in tensors(model).items()
    }
    write_shards(state, directory)
    for file in _companions(source):
        if not (directory / file.name).exists():
            shutil.copyfile(file, directory / file.name)


def _companions(source: Path) -> list[Path]:
    """What lies beside the weights: configuration, tokenizer, code."""
    own = (headers.INDEX, "manifest.json")
    return [
        file
        for file in sorted(source.iterdir())
        if file.is_file() and file.suffix != ".safetensors" and file.name not in own
    ]


def as_stored(value: Tensor, entry: headers.Entry) -> Tensor:
    """A tensor in the type that the files keep it in."""
    return value.to(DTYPES[entry.dtype]) if entry.dtype in DTYPES else value


def usual_dtype(entries: Mapping[str, headers.Entry]) -> torch.dtype:
    """The floating-point type that most tensors are kept in."""
    kept = [DTYPES[entry.dtype] for entry in entries.values() if entry.dtype in DTYPES]
    return max(dict.fromkeys(kept), key=kept.count)


def stored_dtype(name: str, entries: Mapping[str, headers.Entry], otherwise: torch.dtype) -> torch.dtype:
    """The type a weight is kept in; `otherwise` where it is kept under another name or not as a float."""
    return DTYPES.get(entries[name].dtype, otherwise) if name in entries else otherwise
