"""`quantize.rotation`: the parent with its outliers spread, a plain dense checkpoint in a folder of its own, which is what is quantized
then. It is made one shard at a time, and must answer as the parent does before anything else is done to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.core.view import short, size
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Note
from llmos_cli.models.channels import TOLERANCE
from llmos_cli.models.matrices import matrices
from llmos_cli.models.rewrite import usual_dtype
from llmos_cli.models.rotation import Written, holds, write
from llmos_cli.models.shelf import Shelf
from llmos_cli.models.stream import Stream, Unfit, carried, find
from llmos_cli.operations import lineage
from llmos_cli.operations.compression.plan import blank
from llmos_cli.operations.compression.witness import witnessing
from llmos_cli.operations.eval import Exam
from llmos_cli.operations.proof import parity_inputs, proof_split
from llmos_cli.tasks.base import Batch

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Checkpoint, Workspace

Kind = Literal["off", "hadamard", "heads"]
HINT = "leave quantize.rotation out"
PRUNED = 0.05
"""Share of zeros from which a model counts as pruned whose lineage says that it was."""
UNKNOWN_PRUNED = 0.3
"""Share of zeros from which a model counts as pruned whose lineage does not say so: weights that were codes of 4 bits have a sixth."""


def rotated(ws: Workspace, exam: Exam, kind: Kind, folder: Path, *, seed: int, emit: Emit) -> Path:
    """The directory to quantize: the parent's own, or its rotation, which is written to `folder`.

    Raises UsageError for a pruned parent, whose zeros it would fill, and for an architecture that cannot be rotated.
    """
    parent = exam.checkpoint.path
    if kind == "off":
        return parent
    shelf = check_unpruned(ws, exam.checkpoint)
    stream = described(shelf.model, kind, seed)
    try:
        written = write(shelf, folder, stream, seed)
    except Unfit as unfit:
        raise _refusal(shelf.model, unfit) from unfit
    asked = parity_inputs(exam.prepared.splits[proof_split(exam.prepared)], shelf.model)
    _check_parity(shelf, Shelf(folder, shelf.on), asked)
    emit(Note(_told(written)))
    return folder


def described(model: PreTrainedModel, kind: Kind, seed: int) -> Stream:
    """What has to be turned, of a model whose weights may be anywhere; UsageError where it cannot be."""
    inputs = blank(model)
    try:
        small, found = find(model, inputs, whole=kind == "hadamard")
        if kind == "heads" and not found.heads:
            raise Unfit("no two linear layers have nothing but attention between them")
        if not holds(small, found, inputs, seed, TOLERANCE):
            raise Unfit("something besides its norms and linear layers works on single channels")
        return carried(found, small, model)
    except Unfit as unfit:
        raise _refusal(model, unfit) from unfit


def _refusal(model: PreTrainedModel, unfit: Unfit) -> UsageError:
    return UsageError(f"a {model.config.model_type} cannot be rotated: {unfit}", hint=HINT)


def check_unpruned(ws: Workspace, checkpoint: Checkpoint) -> Shelf:
    """The model, its weights still in their files; UsageError for one whose zeros a rotation would fill."""
    shelf = Shelf(checkpoint.path, device.pick())
    names = [] if shelf.lost else list(matrices(shelf.model))
    zeros = sum(int((shelf.read(name) == 0).sum()) for name in names)
    share = zeros / max(1, sum(shelf.model.get_parameter(name).numel() for name in names))
    pruned = any(manifest.made.operation == "prune" for manifest in lineage.line(ws, checkpoint.id))
    if share > (PRUNED if pruned else UNKNOWN_PRUNED):
        raise UsageError(
            f"{share:.0%} of the weights of {short(checkpoint.id)} are zero, and a rotation would fill them", hint=HINT
        )
    return shelf


def _check_parity(before: Shelf, after: Shelf, asked: Batch) -> None:
    """The rotation answers as the parent does, to what its files' type can tell: a wrong one is off by about 1."""
    expected, found = answers(before, asked), answers(after, asked)
    off, largest = float((found - expected).abs().max()), float(expected.abs().max())
    allowed = max(TOLERANCE, 8 * torch.finfo(usual_dtype(before.entries)).eps)
    if not off <= allowed * largest:
        raise LlmosError(
            f"rotated, the model's logits differ by {off:.3g} (largest {largest:.3g}): nothing was committed", hint=HINT
        )


def answers(shelf: Shelf, inputs: Batch) -> Tensor:
    """The model's logits, one block in memory at a time."""
    with witnessing(shelf, inputs) as witness:
        return witness.logits()


def _told(written: Written) -> str:
    if not written.untied:
        return "rotated: the same logits from weights without outlying channels"
    return (
        f"rotated: the embeddings cannot be the output layer any more, so {written.untied} is stored by itself: "
        f"{size(written.bytes)} more (quantize.rotation=heads leaves them tied)"
    )
