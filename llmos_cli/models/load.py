"""Reading a checkpoint directory as a model: dense or quantized, standard, ours or the user's own.

Only safetensors are read, no code from the directory runs (but a trusted `module`), and a tensor that is missing or a file
that was cut short is an error, never a random weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from llmos_cli.errors import Corrupt, LlmosError, NotFound
from llmos_cli.models import architectures, dequantize, headers, module

AUTO: dict[str, Any] = {
    "ForCausalLM": AutoModelForCausalLM,
    "ForImageClassification": AutoModelForImageClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
"""Auto class by the suffix of an architecture's name: `Task.architecture`."""

assert architectures  # imported for what importing it registers


def load(path: Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> PreTrainedModel:
    """The model of a checkpoint directory, in eval mode.

    `dtype`: of the weights in memory; float32 when None, whatever they are stored in, for it holds every stored value exactly
    and is the fastest on most CPUs. Quantized weights come back dequantized, in plain modules.

    Raises:
        NotFound: no configuration or weights. Corrupt: truncated or missing tensors. Untrusted: an untrusted `module`.
    """
    config = load_config(path)
    cls = model_class(config, path)
    wanted = dtype or torch.float32
    headers.of_directory(path)  # a file that was cut short is named before torch meets it
    if dequantize.is_quantized(config):
        model = dequantize.load(cls, path, config, dtype=wanted)
    else:
        model = dequantize.complete(
            cls, path, path, config=config, dtype=wanted, use_safetensors=True, local_files_only=True
        )
    return nn.Module.to(model, device) if device is not None else model


def load_config(path: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint directory."""
    values = _read_json(path / "config.json")
    try:
        if module.MODULE_KEY in values:
            own: Any = _own_class(values[module.MODULE_KEY], path).config_class
            return cast(PreTrainedConfig, own.from_pretrained(path, local_files_only=True))
        # Said outright: unsaid, transformers asks on the terminal whether to run a repository's code.
        found = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return cast(PreTrainedConfig, found)
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as problem:
        kind = values.get("model_type") or "a model without model_type"
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise LlmosError(
            f"{path}/config.json describes {kind}, which does not load: {reason}",
            hint="`llmos fsck` tells whether the checkpoint is whole; `llmos doctor` shows the versions installed",
        ) from problem


def model_class(config: PreTrainedConfig, path: Path | None = None) -> type[PreTrainedModel]:
    """The class `architectures` names: transformers' own, ours, or the user's (`path`: where its file is)."""
    if own := getattr(config, module.MODULE_KEY, None):
        assert path is not None
        return _own_class(own, path)
    name = (config.architectures or ["nothing"])[0]
    for suffix, auto in AUTO.items():
        if name.endswith(suffix) and type(config) in auto._model_mapping:
            return _one_of(auto._model_mapping[type(config)], name)
    found = getattr(transformers, name, None)
    if found is None:
        raise LlmosError(f"the model's class {name} is unknown", hint="llmos needs `architectures` in config.json")
    return found  # type: ignore[no-any-return]


def skeleton(path: Path) -> PreTrainedModel:
    """The model's modules without weights, on the meta device: names, shapes and kinds at no cost."""
    config = dequantize.without_quantization(load_config(path))
    with torch.device("meta"):
        return cast(PreTrainedModel, model_class(config, path)._from_config(config))


def _own_class(record: dict[str, str], path: Path) -> type[PreTrainedModel]:
    return module.load_class(path / Path(record["file"]).name, record["class"])


def _one_of(classes: Any, name: str) -> type[PreTrainedModel]:
    candidates = classes if isinstance(classes, tuple | list) else [classes]
    named = [cls for cls in candidates if cls.__name__ == name]
    return cast(type[PreTrainedModel], (named or candidates)[0])


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except FileNotFoundError:
        raise NotFound(
            f"{file.parent} holds no config.json", hint="a checkpoint is a Hugging Face model directory"
        ) from None
    except ValueError as problem:
        raise Corrupt(f"{file} is not a JSON table", hint="`llmos fsck` lists what is damaged") from problem
