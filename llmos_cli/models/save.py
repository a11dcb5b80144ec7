"""Writing a model as a checkpoint directory: one safetensors shard per block, names as transformers writes them.

Equal tensors give equal bytes: metadata is exactly `{"format": "pt"}`, tensors stand sorted in each file (safetensors does
that) and files in the model's own order, so that a stage that leaves a block alone leaves its shard's hash alone.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from llmos_cli.models import blocks
from llmos_cli.models.headers import INDEX
from llmos_cli.models.module import MODULE_KEY

METADATA = {"format": "pt"}


def save(model: PreTrainedModel, directory: Path, *, dtype: torch.dtype | None = None, processor: Any = None) -> None:
    """Write weights, configuration and tokenizer. `dtype`: of the stored floating-point weights, as they are when None."""
    directory.mkdir(parents=True, exist_ok=True)
    save_config(model, directory, dtype=dtype)
    write_shards(cast_floats(tensors(model), dtype), directory)
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


def stored_names(model: PreTrainedModel) -> dict[str, str]:
    """On-disk name by state-dict name, of the tensors that are stored unchanged; fused ones that are stored apart are absent."""
    state = dict(model.state_dict())
    name_of = {id(value): name for name, value in state.items()}
    stored = revert_weight_conversion(model, state)
    return {name_of[id(value)]: name for name, value in stored.items() if id(value) in name_of}


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


def write_shards(state: Mapping[str, Tensor], directory: Path) -> None:
    """One file per block, embeddings and head in their own, and the index."""
    groups = blocks.shards(state)
    write_streamed(groups, lambda group: {name: state[name] for name in group}, directory)


def write_streamed(
    groups: Iterable[list[str]], read: Callable[[list[str]], Mapping[str, Tensor]], directory: Path
) -> None:
    """Write each group of names as a shard, holding one at a time. `read` may return other names than it was asked for
    (a packed weight for a dense one)."""
    groups = list(groups)
    weight_map: dict[str, str] = {}
    size = count = 0
    for number, group in enumerate(groups, 1):
        shard = {name: value.detach().cpu().contiguous() for name, value in read(group).items()}
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(shard, directory / file, metadata=METADATA)
        weight_map |= dict.fromkeys(shard, file)
        size += sum(value.nbytes for value in shard.values())
        count += sum(math.prod(value.shape) for value in shard.values())
    index = {"metadata": {"total_parameters": count, "total_size": size}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
