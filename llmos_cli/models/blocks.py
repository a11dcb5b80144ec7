"""The one description of a model's parts: blocks in forward order, compressible layers, the head, and the shard of each tensor.

It rests on how transformers (and we) lay models out: a stack of blocks is an `nn.ModuleList`, what precedes the head is
`model.base_model`, and so the first number in a tensor's name is its block. That holds for decoders, encoders,
encoder-decoders, vision models, and our own small ones alike, and a user's own module without a ModuleList is one block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

COMPRESSIBLE = (nn.Linear, nn.Conv2d, nn.LSTM, Conv1D)
EMBEDDING_PARTS = {"embeddings", "embedding", "patch_embeddings", "patch_embed", "embed_tokens"}
NUMBERED = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Block:
    """`name`: the module's dotted name in the model; "" where the whole model is one block."""

    name: str
    module: nn.Module


def blocks(model: nn.Module) -> list[Block]:
    """The repeated blocks in forward order: the children of the outermost module lists that hold compressible layers."""
    found = [
        Block(f"{name}.{index}", child)
        for name, stack in _outermost_lists(model)
        for index, child in enumerate(stack)
        if _compressible(child)
    ]
    return found or [Block("", model)]


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Compressible layers by name, in forward order as far as the model lists them so: not embeddings, not output heads."""
    others = {*head_names(model), *embedding_names(model)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, COMPRESSIBLE) and name not in others
    }


def embedding_names(model: nn.Module) -> list[str]:
    """Names of the layers that make what the first block is given: those within embeddings, and those that the model lists before
    its blocks (ELECTRA's projection, ResNet's first convolution). What is changed block by block begins after them."""
    names = [name for name, module in model.named_modules() if isinstance(module, COMPRESSIBLE)]
    listed = list(dict(model.named_modules()))
    first = listed.index(blocks(model)[0].name)
    return [name for name in names if listed.index(name) < first or EMBEDDING_PARTS & {*name.split(".")}]


def head_names(model: nn.Module) -> list[str]:
    """Names of the layers that turn features into logits: whatever stands outside the base model."""
    base = base_model(model)
    inside = {id(module) for module in base.modules()}
    candidates = {name: module for name, module in model.named_modules() if isinstance(module, COMPRESSIBLE)}
    if base is not model:
        return [name for name, module in candidates.items() if id(module) not in inside]
    return _last_linear(model, candidates)


def other_matrices(model: nn.Module) -> dict[str, str]:
    """Parameters of two dimensions and more that stand in a block and belong to no layer that is compressed, no embedding and no
    convolution: experts in one tensor, routers, tables of positions. By name, what class of module they belong to."""
    return {
        f"{block.name}.{name}.{own}".replace("..", "."): type(module).__name__
        for block in blocks(model)
        for name, module in block.module.named_modules()
        if not isinstance(module, (*COMPRESSIBLE, nn.Embedding))
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.squeeze().dim() > 1
    }


def base_model(model: nn.Module) -> nn.Module:
    """The model without its head; the model itself where it does not say."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def weights(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a compressible layer by their name in it: `weight`, or the two of each step of an LSTM; no biases."""
    return {name: parameter for name, parameter in layer.named_parameters(recurse=False) if parameter.dim() > 1}


def shard_of(name: str) -> str | None:
    """The block a tensor is stored with: its name up to the first number; None for embeddings and heads."""
    numbered = NUMBERED.match(name)
    return numbered.group(1) if numbered else None


def shards(names: Iterable[str]) -> list[list[str]]:
    """Tensor names grouped as they are stored, in order: what precedes the first block, each block, what follows.

    `names` come in the order of the model's state dict, which is the order of its modules.
    """
    before: list[str] = []
    grouped: dict[str, list[str]] = {}
    after: list[str] = []
    for name in names:
        block = shard_of(name)
        if block is not None:
            grouped.setdefault(block, []).append(name)
        else:
            (after if grouped else before).append(name)
    return [group for group in (before, *grouped.values(), after) if group]


def _outermost_lists(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            found.append((prefix + name, child))
        else:
            found += _outermost_lists(child, f"{prefix}{name}.")
    return found


def _compressible(module: nn.Module) -> bool:
    return any(isinstance(part, COMPRESSIBLE) for part in module.modules())


def _last_linear(model: nn.Module, candidates: Mapping[str, nn.Module]) -> list[str]:
    """Of a module that does not tell its head: the output embeddings, else the last linear layer."""
    output = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    named = [name for name, module in candidates.items() if module is output]
    return named or [name for name, module in candidates.items() if isinstance(module, nn.Linear)][-1:]
