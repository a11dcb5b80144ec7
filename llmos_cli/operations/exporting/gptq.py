"""The GPTQ layout, for readers that know nothing newer: a quantized checkpoint's own codes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import LlmosError
from llmos_cli.models import gptq_files, headers
from llmos_cli.models.load import load
from llmos_cli.operations.exporting.common import ExportOptions, Outcome, compared, copy, others

TYPES: tuple[str, ...] = ()
SUFFIXES = (".safetensors",)
FILE = ""
TOLERANCE = 0.02
"""Largest change of a logit that fp16 in place of bf16 or fp32 may cause, as a share of the largest."""


def write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    version = gptq_files.write(checkpoint.path, target)
    copy(checkpoint, target, others(checkpoint) - {headers.INDEX})
    model = load(checkpoint.path)
    difference = compared(model, lambda: _read_into(model, target))
    if not difference <= TOLERANCE:
        raise LlmosError(
            f"the export's logits differ by {difference:.2g} of the largest from the checkpoint's",
            hint="this is a defect of llmos: please report the model's config.json",
        )
    return Outcome(
        difference, notes=("its very codes, scales in fp16; inputs are never rounded there", *_note(version))
    )


def _note(version: str) -> tuple[str, ...]:
    """What a user of zero points must know of the readers."""
    return () if version == "gptq" else (f"zero points are in {version}: GPTQModel and vLLM from 0.11.1 read it",)


def _read_into(model: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """The model with the quantized layers' weights as the files give them."""
    with torch.no_grad():
        for layer, weight_OI in gptq_files.read(directory):
            model.get_parameter(f"{layer}.weight").copy_(weight_OI)
    return model
