"""Writing a checkpoint that is another one with some weights changed: the same shards, types and companions.

A shard of which nothing changed keeps its bytes, and so is stored once.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.models import headers
from llmos_cli.models.save import tensors, write_streamed

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rewrite(model: PreTrainedModel, source: Path, directory: Path) -> None:
    """Write `model`, which was loaded from `source` and changed, as `source` was written."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = headers.of_directory(source)
    state = as_stored(tensors(model), entries)
    by_file: dict[Path, list[str]] = {}
    for name, entry in entries.items():
        by_file.setdefault(entry.file, []).append(name)
    write_streamed([by_file[file] for file in sorted(by_file)], lambda group: {n: state[n] for n in group}, directory)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and file.name not in (headers.INDEX, "manifest.json"):
            shutil.copyfile(file, directory / file.name)


def as_stored(state: Mapping[str, Tensor], entries: Mapping[str, headers.Entry]) -> dict[str, Tensor]:
    """Each tensor in the type that `entries` keep it in."""
    return {
        name: state[name].to(DTYPES[entry.dtype]) if entry.dtype in DTYPES else state[name]
        for name, entry in entries.items()
    }


def stored_dtype(name: str, entries: Mapping[str, headers.Entry], otherwise: torch.dtype) -> torch.dtype:
    """The type a weight is kept in; `otherwise` where it is kept under another name or not as a float."""
    return DTYPES.get(entries[name].dtype, otherwise) if name in entries else otherwise
