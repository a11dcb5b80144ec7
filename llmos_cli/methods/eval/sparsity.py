"""Sparsity: the share of exact zeros among the weights of the compressible layers."""

from __future__ import annotations

from llmos_cli.methods.eval import Subject
from llmos_cli.models.blocks import layers, weights

UNITS = {"sparsity": ""}
TIMED = False


def measure(subject: Subject) -> dict[str, float]:
    matrices = [weight for layer in layers(subject.model).values() for weight in weights(layer).values()]
    total = sum(weight.numel() for weight in matrices)
    zeros = sum(int((weight == 0).sum()) for weight in matrices)
    return {"sparsity": zeros / total} if total else {}
