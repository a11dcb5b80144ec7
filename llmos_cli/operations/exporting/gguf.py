"""One GGUF file for llama.cpp and its kin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import LlmosError
from llmos_cli.models import gguf_file
from llmos_cli.models.gguf_file import Written
from llmos_cli.models.int8 import unrounded
from llmos_cli.models.load import load
from llmos_cli.operations.exporting.common import ExportOptions, Outcome, compared
from llmos_cli.operations.import_ import licence

TYPES = tuple(gguf_file.TYPES)
SUFFIXES = (".gguf",)
FILE = "model.gguf"
TOLERANCE = 0.02
"""Largest change of a logit that types of 8 bits and more may cause; fewer bits cost what they cost, and it is told."""


def write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    written = gguf_file.write(checkpoint.path, target / FILE, dtype=options.type, licence=licence(checkpoint.path))
    model = unrounded(load(checkpoint.path))
    difference = compared(model, lambda: gguf_file.read_back(target / FILE, model))
    few_bits = sum(written.kinds.get(kind, 0) for kind in gguf_file.FEW_BITS)
    if not difference <= (torch.inf if few_bits > written.kept else TOLERANCE):
        raise LlmosError(
            f"the file's logits differ by {difference:.2g} of the largest from the checkpoint's",
            hint="export with --type float32",
        )
    return Outcome(difference, notes=tuple(_notes(written, options)))


def _notes(written: Written, options: ExportOptions) -> Iterator[str]:
    yield "matrices: " + ", ".join(f"{count} {kind}" for kind, count in written.kinds.items())
    if written.kept:
        yield f"{written.kept} of {written.quantized} quantized matrices keep their codes"
    elif options.type in ("q4_0", "q4_1", "q4_k"):
        yield "for fewer errors: `llmos quantize --bits 4 --group-size 32` chooses codes with data, and q4_0 keeps them"
