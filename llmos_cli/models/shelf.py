"""A model whose blocks lie in their files until it is their turn: peak memory is one block and little that stands outside the blocks.

Its modules are there all along, their parameters without storage; buffers that no file holds (rotary tables) are real. Weights
are fp32 in memory, as `load` gives them, dequantized where the files hold codes, so that a block here computes the same bits.
Embeddings and heads stay in their files, and are read as they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llmos_cli import device
from llmos_cli.models import dequantize, headers
from llmos_cli.models.blocks import Block, blocks, head_names
from llmos_cli.models.load import load_config, model_class
from llmos_cli.models.on_file import OnFile
from llmos_cli.models.save import stored_names, tied_names


@dataclass(frozen=True)
class Slot:
    """One tensor: its `names` in the model (several where it is tied), what the files call it, and the block that it is loaded
    with; None for what stands outside them."""

    names: tuple[str, ...]
    stored: str
    block: int | None


class Shelf:
    """The model of a checkpoint directory, in eval mode. `lost`: names of tensors that are not in the files as they are in the
    model; such a model must be loaded whole."""

    def __init__(self, path: Path, on: torch.device) -> None:
        self.path, self.on = path, on
        self.config = load_config(path)
        self.entries = headers.of_directory(path)
        self.model = hollow(self.config, path).eval()
        dequantize.round_inputs(self.model, self.config)
        self.stack = blocks(self.model)
        slots = _slots(self.model, self.stack, self.entries)
        self.lost = [slot.names[0] for slot in slots if not slot.stored]
        self.slots = {name: slot for slot in slots for name in slot.names}
        self._on_file = _used_in_place(self.model, self.stack, slots, self.entries) if on.type == "cpu" else set()
        if not self.lost:
            for name, buffer in self.model.named_buffers():
                stays = name not in self.slots or self.slots[name].block is None
                place(self.model, name, device.move(buffer, on if stays else torch.device("meta")))
            for slot in self._on_file:
                self.put(slot.names[0], OnFile(self.entries[slot.stored]))
            self._fill(None)

    @contextmanager
    def held(self, index: int) -> Iterator[None]:
        """Block `index` in memory, as the files say it; afterwards it is without storage again. Past the last block is nothing
        to do: what stands there is in memory all along."""
        self._fill(index)
        try:
            yield
        finally:
            for slot in self._of(index):
                for name in slot.names:
                    place(self.model, name, tensor_of(self.model, name).to("meta"))
            device.give_back()

    def close(self) -> None:
        """What stands outside the blocks is without storage too: for when the model is needed by name only."""
        for name in self.slots:
            place(self.model, name, tensor_of(self.model, name).to("meta"))
        device.give_back()

    def read(self, name: str) -> Tensor:
        """One tensor as the files say it, in fp32, whether its block is held or not."""
        slot = self.slots[name]
        with self._weights([slot]) as weights:
            return weights[slot.stored].clone()

    def put(self, name: str, value: Tensor) -> None:
        """Another value for a tensor, under all of its names."""
        first = place(self.model, self.slots[name].names[0], value)
        for other in self.slots[name].names[1:]:
            place(self.model, other, first)

    def _of(self, index: int | None) -> list[Slot]:
        return [slot for slot in dict.fromkeys(self.slots.values()) if slot.block == index]

    def _fill(self, index: int | None) -> None:
        slots = [slot for slot in self._of(index) if slot not in self._on_file]
        with self._weights(slots) as weights:
            for slot in slots:
                # A copy: what is read is a window on the file, which must not be written to and is not aligned.
                self.put(slot.names[0], device.move(weights[slot.stored].clone(), self.on))

    @contextmanager
    def _weights(self, slots: list[Slot]) -> Iterator[Mapping[str, Tensor]]:
        """The files are open only as long: pages of theirs that were looked at count as this process's memory."""
        wanted = {slot.stored for slot in slots}
        entries = {n: entry for n, entry in self.entries.items() if headers.dense_name(n, self.entries) in wanted}
        with dequantize.dense_of(entries, self.config, torch.float32) as weights:
            yield weights


def hollow(config: PreTrainedConfig, path: Path) -> PreTrainedModel:
    """The model's modules with real buffers, and parameters that have a shape and no storage."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            # Before anything was written to it: memory that nobody touched was never there.
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        dense = dequantize.without_quantization(config)
        model: PreTrainedModel = model_class(config, path)._from_config(dense, dtype=torch.float32)
        return model
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def place(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """Put a tensor where the model has one of that name; the tensor that stands there then."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    is_parameter = leaf in module._parameters
    if is_parameter and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, requires_grad=value.is_floating_point())
    # Not into `_parameters`: an LSTM keeps a second list of its weights up to date in `__setattr__`.
    setattr(module, leaf, value)
    return value


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name, as it is now."""
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found


def owned(model: nn.Module, stack: Sequence[Block]) -> dict[int | None, list[str]]:
    """The names of the stored tensors by the block that they are in, the first of several; None: outside all of them. Tensors
    that are tied go by their first name."""
    found: dict[int | None, list[str]] = {}
    for names in tied_names(model):
        owners = [owner for name in names if (owner := _owner(name, stack)) is not None]
        found.setdefault(min(owners, default=None), []).append(names[0])
    return found


def _slots(model: PreTrainedModel, stack: Sequence[Block], entries: Mapping[str, headers.Entry]) -> list[Slot]:
    """Every tensor that the files must hold. One that several blocks share, or a block and what stands outside, stays in memory."""
    shapes = headers.dense_shapes(entries)
    renamed = stored_names(model, shapes)
    slots = []
    for names in tied_names(model):
        shape = tuple(tensor_of(model, names[0]).shape)
        found = [stored for name in names for stored in (name, renamed.get(name, "")) if shapes.get(stored) == shape]
        owners = {_owner(name, stack) for name in names}
        slots.append(Slot(tuple(names), found[0] if found else "", owners.pop() if len(owners) == 1 else None))
    return slots


def _used_in_place(
    model: PreTrainedModel, stack: Sequence[Block], slots: Sequence[Slot], entries: Mapping[str, headers.Entry]
) -> set[Slot]:
    """Those whose weights are looked up or are a head's and nothing else: no method compresses them where they stand."""
    heads = set(head_names(model))

    def serves(name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        looked_up = isinstance(module, nn.Embedding) and module.max_norm is None
        multiplied = isinstance(module, nn.Linear) and owner in heads
        return leaf == "weight" and (looked_up or multiplied) and _owner(name, stack) is None

    outside = (slot for slot in slots if slot.block is None and slot.stored in entries)
    return {slot for slot in outside if OnFile.can_be(entries[slot.stored]) and all(map(serves, slot.names))}


def _owner(name: str, stack: Sequence[Block]) -> int | None:
    return next(
        (index for index, block in enumerate(stack) if not block.name or name.startswith(f"{block.name}.")), None
    )
