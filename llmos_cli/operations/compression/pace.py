"""How long each part of a model takes in each number of bits, where it is served: what the kernels' own measurements say.

At batch 1 the times of the layers add up, so seconds are spent part by part as bytes are. All else that a model does (attention, norms,
embeddings, a head, Python) takes as long in any bits, and convolutions and LSTMs have one form only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from llmos_cli import device
from llmos_cli.methods.grid import usable_group
from llmos_cli.methods.turns import Pass
from llmos_cli.models.kernels import choice
from llmos_cli.models.kernels.codes import Codes
from llmos_cli.models.matrices import Matrix
from llmos_cli.operations.compression.sensitivity import Part
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.served import answering, arithmetic
from llmos_cli.tasks.base import Split


def paced(here: Subject, split: Split, parts: Sequence[Part], group_size: int) -> list[Part]:
    """The parts with their seconds in one answer."""
    rows = _rows(here.model, answering(here.exam.task, here.model, split))
    clock = partial(_seconds, dtype=arithmetic(here.exam.task), group_size=group_size)

    def seconds(part: Part, bits: int) -> float:
        layers = [here.matrices[name] for name in part.names if isinstance(here.matrices[name].layer, nn.Linear)]
        if not rows:  # our own decoder does not call the layers: those of a part are one product there, of one row
            return clock(layers, bits, rows=1) if layers else 0.0
        return sum(clock([one], bits, rows=rows[one.layer_name]) for one in layers if one.layer_name in rows)

    return [replace(part, bits_seconds=told_apart({b: seconds(part, b) for b in part.bits_bytes})) for part in parts]


def told_apart(seconds: Mapping[int, float]) -> dict[int, float]:
    """Fewer bits take as long as more, unless they are faster by more than noise: none are chosen for a gain that is not there."""
    found: dict[int, float] = {}
    least = float("inf")
    for bits in sorted(seconds, reverse=True):
        if seconds[bits] * choice.NOISE < least:
            least = seconds[bits]
        found[bits] = least
    return found


def _seconds(layers: Sequence[Matrix], bits: int, *, rows: int, dtype: torch.dtype, group_size: int) -> float:
    """Of layers that are fed the same tensor, as one product."""
    inputs, outputs = layers[0].inputs, sum(layer.shape.numel() // layer.inputs for layer in layers)
    scales_OG = torch.ones(outputs, inputs // usable_group(inputs, group_size), device=device.pick())
    # Which codes they are makes no difference to a kernel.
    codes_OI = torch.zeros(outputs, inputs, dtype=torch.int8, device=device.pick())
    return choice.seconds(Codes(codes_OI, scales_OG, bits), dtype, rows)


def _rows(model: nn.Module, answer: Pass) -> dict[str, int]:
    """The rows that each linear layer is given."""
    found: dict[str, int] = {}

    def note(name: str, layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
        found[name] = found.get(name, 0) + given[0].numel() // layer.in_features

    with ExitStack() as undo, torch.inference_mode():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                undo.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        answer()
    return found
