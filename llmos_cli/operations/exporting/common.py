"""What formats share: options, what each tells of itself, copies of the files beside the weights, logits side by side."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.core import atomic
from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import LlmosError
from llmos_cli.models import pictures
from llmos_cli.models.conformance import Conformance

WEIGHTS = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True)
class ExportOptions:
    """`dequantize`: write dense weights; `standalone`: add the Python file of one of our architectures (dense weights too);
    `type`: how the format stores weights, one of its TYPES, None for its own choice."""

    format: str = "hf"
    dequantize: bool = False
    standalone: bool = False
    type: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`difference`: the largest between a logit of the checkpoint and of the export on one input, as a share of the largest;
    0 where files were copied or numbers are the same to the bit."""

    difference: float = 0.0
    code: str = ""
    conformance: Conformance | None = None
    notes: tuple[str, ...] = ()


def copy(checkpoint: Checkpoint, target: Path, names: Iterable[str]) -> None:
    for name in names:
        atomic.make_directory((target / name).parent)
        shutil.copyfile(checkpoint.path / name, target / name)


def others(checkpoint: Checkpoint) -> set[str]:
    """All files but weights and config.json: tokenizer, generation settings, card, licence."""
    return {name for name in checkpoint.manifest.tree if not name.endswith(WEIGHTS) and name != "config.json"}


def logits(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        answer: Any = model(**inputs)
    return answer.logits.float()  # type: ignore[no-any-return]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest between two sets of logits, as a share of the largest; LlmosError where `one`, the checkpoint's, are not finite."""
    if not one.isfinite().all():
        raise LlmosError(
            "the checkpoint answers what is not finite: nothing was exported",
            hint="export one from before that; `llmos eval` tells which answer",
        )
    return float((one - other).abs().max() / one.abs().max())


def compared(one: PreTrainedModel, read: Callable[[], PreTrainedModel]) -> float:
    """Between the logits of a model and of what is read back, on one input."""
    inputs = example(one)
    return difference(logits(one, inputs), logits(read(), inputs))


def example(model: PreTrainedModel, rows: int = 2) -> dict[str, Tensor]:
    """One input of the right shape; noise will do, for both models see the same."""
    generator = torch.Generator().manual_seed(0)
    if (
        "pixel_values" in inspect.signature(model.forward).parameters
    ):  # `main_input_name` says ids unless a class does not
        return {"pixel_values": pictures.noise(model.config, rows, generator)}
    length = min(64, getattr(model.config, "max_position_embeddings", 64))
    return {"input_ids": torch.randint(0, model.config.vocab_size, (rows, length), generator=generator)}
