"""Writing a model as a checkpoint directory: one safetensors shard per block, names as transformers writes them.

Equal tensors give equal bytes: metadata is exactly `{"format": "pt"}`, tensors stand sorted in each file (safetensors does
that) and files in the model's own order, so that a stage that leaves a block alone leaves its shard's hash alone. A shard that
is known to be another checkpoint's, to the bit, is that one's file under a second name, neither written nor hashed again.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from llmos_cli.core.atomic import as_made_here
from llmos_cli.core.objects import share
from llmos_cli.models import blocks, headers
from llmos_cli.models.headers import INDEX
from llmos_cli.models.module import MODULE_KEY

METADATA = {"format": "pt"}

Shard = Mapping[str, Tensor] | Path
"""Tensors to be written, or the file of another checkpoint that holds just these."""


def save(
    model: PreTrainedModel,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    processor: Any = None,
    like: Path | None = None,
) -> None:
    """Write weights, configuration and tokenizer. `dtype`: of the stored floating-point weights, as they are when None; `like`: a
    checkpoint some of whose shards may have stayed the same."""
    directory.mkdir(parents=True, exist_ok=True)
    save_config(model, directory, dtype=dtype)
    write_shards(cast_floats(tensors(model), dtype), directory, like=like)
    if processor is not None:
        processor.save_pretrained(directory)


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict as transformers stores it: tied tensors once, names and layouts of the original checkpoints."""
    state = dict(model.state_dict())
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    names = list(state)
    state = remove_tied_weights_from_state_dict(state, model)
    return _in_order(revert_weight_conversion(model, state), names)


def stored_names(model: PreTrainedModel, known: Collection[str] = ()) -> dict[str, str]:
    """On-disk name by state-dict name, of the tensors that are stored unchanged; fused ones that are stored apart are absent.

    `known`: names that the files have. Where they are the model's own, transformers is not asked: its answer begins with a list of what
    all architectures rename, a quarter of a second.
    """
    state = dict(model.state_dict())
    if all(any(name in known for name in names) for names in tied_names(model)):
        return {name: name for name in state}
    name_of = {id(value): name for name, value in state.items()}
    stored = revert_weight_conversion(model, state)
    return {name_of[id(value)]: name for name, value in stored.items() if id(value) in name_of}


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each tensor of the state dict."""
    found: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        found.setdefault(id(value), []).append(name)
    return list(found.values())


def _in_order(stored: Mapping[str, Tensor], module_names: list[str]) -> dict[str, Tensor]:
    """What precedes the first block, the blocks, what follows: the order of the modules, which converted names have lost."""
    position = {name: index for index, name in enumerate(module_names)}
    first = next((index for name, index in position.items() if blocks.shard_of(name)), len(position))
    last = len(position)

    def place(name: str) -> tuple[int, int]:
        index = position.get(name, last)
        return (0 if index < first else 1 if blocks.shard_of(name) else 2), index

    return {name: stored[name] for name in sorted(stored, key=place)}


def save_config(model: PreTrainedModel, directory: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json (dense: a quantization is written by `quantized`), generation_config.json, the user's own module file."""
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    if source := getattr(type(model), "__llmos_file__", None):
        shutil.copyfile(source, directory / getattr(config, MODULE_KEY)["file"])


def cast_floats(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating-point tensors in `dtype`, the rest (counters, codes) as they are."""
    return {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in state.items()
    }


def write_shards(state: Mapping[str, Tensor], directory: Path, *, like: Path | None = None) -> None:
    """One file per block, embeddings and head in their own, and the index. `like`: as `save` says."""
    entries = headers.of_directory(like) if like else {}

    def read(group: list[str]) -> Shard:
        shard = {name: state[name] for name in group}
        file = entries[group[0]].file if group[0] in entries else None
        return file if file and _holds(file, shard) else shard

    write_streamed(blocks.shards(state), read, directory)


def _holds(file: Path, shard: Mapping[str, Tensor]) -> bool:
    """Whether a file holds these tensors and no others."""
    with safe_open(file, "pt") as opened:
        return set(opened.keys()) == set(shard) and all(
            same_bits(opened.get_tensor(name), value) for name, value in shard.items()
        )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Unlike `torch.equal`, which takes -0 for 0 and no NaN for itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (value.detach().cpu().contiguous().view(-1).view(torch.uint8) for value in (one, other))
    return torch.equal(first, second)


def write_streamed(groups: Iterable[list[str]], read: Callable[[list[str]], Shard], directory: Path) -> None:
    """Write each group of names as a shard, holding one at a time. `read` may return other names than it was asked for
    (a packed weight for a dense one)."""
    groups = list(groups)
    entries: dict[str, headers.Entry] = {}
    for number, group in enumerate(groups, 1):
        file = directory / f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        file.unlink(missing_ok=True)  # what is there may be another checkpoint's file too: it is not written into
        shard = read(group)
        if isinstance(shard, Path):
            share(shard, file)
        else:
            laid_out = {name: value.detach().cpu().contiguous() for name, value in shard.items()}
            save_file(laid_out, file, metadata=METADATA)
            as_made_here(file)
        entries |= headers.of_file(file)
    count = sum(math.prod(entry.shape) for entry in entries.values())
    size = sum(entry.bytes for entry in entries.values())
    weight_map = {name: entry.file.name for name, entry in entries.items()}
    index = {"metadata": {"total_parameters": count, "total_size": size}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
