"""A Hugging Face directory: the checkpoint's own files, or dense ones in another type."""

from __future__ import annotations

from pathlib import Path

import torch

from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import LlmosError
from llmos_cli.models import conformance, standalone
from llmos_cli.models.load import load, load_config
from llmos_cli.models.save import save
from llmos_cli.operations.exporting.common import ExportOptions, Outcome, compared, copy, others

TYPES = ("float32", "bfloat16", "float16")
SUFFIXES = (".safetensors",)
FILE = ""
TOLERANCE = 0.02
"""Largest change of a logit that storing dequantized weights in 16 bits may cause, as a share of the largest logit."""


def write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    if options.dequantize or options.standalone or options.type:
        return _write_dense(checkpoint, target, options)
    copy(checkpoint, target, checkpoint.manifest.tree)
    return Outcome(conformance=conformance.check(target))


def _write_dense(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    model = load(checkpoint.path)
    save(model, target, dtype=getattr(torch, options.type) if options.type else _stored_dtype(checkpoint.path))
    copy(checkpoint, target, others(checkpoint))
    difference = compared(model, lambda: load(target))
    if not difference <= TOLERANCE:  # what answers NaN is nowhere near either
        raise LlmosError(
            f"the export's logits differ by {difference:.2g} of the largest from the checkpoint's",
            hint="export with --type float32",
        )
    return Outcome(difference, standalone.write(target) if options.standalone else "")


def _stored_dtype(path: Path) -> torch.dtype:
    stored = load_config(path).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32
