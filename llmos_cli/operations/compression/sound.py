"""What no method mends: weights that are not finite, looked for where nothing is compressed, before anything is.

A compressed matrix is looked at as it is read. All others, a norm, an embedding, a head, would show only in the proof.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import torch

from llmos_cli.errors import LlmosError
from llmos_cli.models import headers
from llmos_cli.models.matrices import finite
from llmos_cli.models.rewrite import DTYPES

STRIPE = 4 << 20
"""Bytes of a file that are looked at together."""


def check_finite(directory: Path, names: Container[str]) -> None:
    """LlmosError for the first of a checkpoint directory's tensors among `names` that holds a NaN or an infinity."""
    for name, entry in headers.of_directory(directory).items():
        if name in names and entry.dtype in DTYPES and not _is_finite(entry):
            raise LlmosError(f"{name} holds values that are not finite", hint="compress a checkpoint from before that")


def _is_finite(entry: headers.Entry) -> bool:
    with open(entry.file, "rb") as file:
        file.seek(entry.start)
        for start in range(entry.start, entry.end, STRIPE):
            stripe = bytearray(file.read(min(STRIPE, entry.end - start)))
            if not finite(torch.frombuffer(stripe, dtype=DTYPES[entry.dtype])):
                return False
    return True
