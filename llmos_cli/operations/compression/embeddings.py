"""Token embeddings and the head as 8-bit codes: rounded before anything is calibrated, so that blocks are fitted to what these give.

8 bits and nothing else: readers of compressed-tensors take an embedding's codes only as int8 (`models/quantized.py`). A head that is
tied to the embedding shares its codes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from llmos_cli.errors import UsageError
from llmos_cli.methods.grid import Codes, Grid, nearest, usable_group, widest
from llmos_cli.models import headers
from llmos_cli.models.matrices import Matrix
from llmos_cli.models.rewrite import stored_dtype
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.sensitivity import ENTRY
from llmos_cli.operations.compression.subject import Subject

BITS = 8
SLICE = 4096
"""Rows rounded at once: a vocabulary in fp32, several times over, would be the peak of the memory."""


def round_embeddings(subject: Subject, group_size: int) -> dict[str, Coded]:
    """The codes by the weights' names; the model holds their values from now on. UsageError where it looks no tokens up."""
    entries, usual = headers.of_directory(subject.source), subject.exam.task.default_dtype
    found = {}
    for name, matrix in outside(subject.model).items():
        grid = Grid(BITS, usable_group(matrix.inputs, group_size), stored_dtype(name, entries, usual))
        codes = _rounded(matrix, grid)
        if subject.shelf:
            subject.shelf.put(name, matrix.shaped(codes.dequantized()))
        else:
            matrix.write(codes.dequantized())
        found[name] = Coded(matrix, codes, grid)
    return found


def outside(model: PreTrainedModel) -> dict[str, Matrix]:
    """The token embedding and, where its weight is its own, the head."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding = _embedding(model)
    if not isinstance(embedding, nn.Embedding):
        raise UsageError(
            f"{type(model).__name__} has no embedding of tokens to quantize",
            hint="leave `embeddings` out of the config",
        )
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    layers: list[nn.Module] = [embedding]
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and f"{names[id(head)]}.weight" not in tied:
        layers.append(head)
    return {
        f"{names[id(layer)]}.weight": Matrix(
            f"{names[id(layer)]}.weight", names[id(layer)], layer, layer.get_parameter("weight").shape
        )
        for layer in layers
    }


def left_alone_but(left_alone: Mapping[str, str], model: PreTrainedModel) -> dict[str, str]:
    """Without the embedding and the head, which hold codes after all; a tied head those of its embedding."""
    layers = [_embedding(model), model.get_output_embeddings()]
    return {name: reason for name, reason in left_alone.items() if model.get_submodule(name) not in layers}


def bytes_gained(model: PreTrainedModel, entries: Mapping[str, headers.Entry], group_size: int) -> int:
    """By which the files get smaller, at least; negative where scales weigh more than is gained."""
    gained = 0
    for name, matrix in outside(model).items():
        rows, inputs = matrix.shape
        scales = rows * (inputs // usable_group(inputs, group_size)) * 2
        gained += entries[name].bytes - (rows * inputs + 2 * scales + ENTRY)
    return gained


def _embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:  # transformers' word for a model that has none
        return None
    return found


def _rounded(matrix: Matrix, grid: Grid) -> Codes:
    return Codes.joined([nearest(part_OI, widest(part_OI, grid), grid) for part_OI in matrix.read().split(SLICE)])
