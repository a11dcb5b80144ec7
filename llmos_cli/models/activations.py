"""Activations kept from one block to the next: in memory up to a budget, past it in files.

What was spilled comes back as it was, bit by bit, and only while somebody looks at it.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

Nest = Any
"""A tensor, or lists, tuples and dictionaries of them, with whatever else stands in between."""


class Spill:
    """`budget`: bytes of tensors to keep in memory, over all stores together, without a limit when None; `folder`: where
    the others go, which is the caller's to remove."""

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self.left = budget if folder is not None else None
        self.folder = folder
        self._numbers = itertools.count()

    def store(self) -> Store:
        return Store(self)

    def take(self, size: int) -> bool:
        """Whether there is room for `size` more bytes in memory; they are taken if so."""
        if self.left is not None and size > self.left:
            return False
        self.give(-size)
        return True

    def give(self, size: int) -> None:
        """`size` bytes in memory are free again."""
        if self.left is not None:
            self.left += size

    def file(self) -> Path:
        assert self.folder is not None, "without a folder there is no limit"
        return self.folder / f"{next(self._numbers)}.safetensors"


class Store:
    """Nests of tensors by key; another under the same key replaces the first."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._kept: dict[Hashable, tuple[list[Any], TreeSpec, Path | None]] = {}

    def __setitem__(self, key: Hashable, nest: Nest) -> None:
        del self[key]
        leaves, spec = tree_flatten(nest)
        tensors = {str(place): leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        if not tensors or self._spill.take(_size(leaves)):
            self._kept[key] = leaves, spec, None
            return
        file = self._spill.file()
        # A fresh copy of each: safetensors refuses tensors that share memory.
        save_file({name: _laid_out(value).cpu().clone() for name, value in tensors.items()}, file)
        self._kept[key] = [_Place.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec, file

    def __getitem__(self, key: Hashable) -> Nest:
        """None where nothing was kept."""
        if key not in self._kept:
            return None
        leaves, spec, file = self._kept[key]
        if file is not None:
            stored = load_file(file)
            leaves = [
                leaf.back(stored[str(place)]) if isinstance(leaf, _Place) else leaf for place, leaf in enumerate(leaves)
            ]
        return tree_unflatten(leaves, spec)

    def __delitem__(self, key: Hashable) -> None:
        if key in self._kept:
            leaves, _, file = self._kept.pop(key)
            if file is None:
                self._spill.give(_size(leaves))
            else:
                file.unlink()

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._kept)

    def clear(self) -> None:
        for key in list(self):
            del self[key]


@dataclass(frozen=True)
class _Place:
    """Where a spilled tensor was and how it lay in memory, on which a product's last bits may depend."""

    device: torch.device
    order: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        order = _order(tensor)
        return cls(tensor.device, tuple(order.index(dimension) for dimension in range(tensor.dim())))

    def back(self, stored: Tensor) -> Tensor:
        # A copy: what is read is a window on the file, and lies anywhere in a cache line.
        return stored.clone().to(self.device).permute(self.order)


def _laid_out(tensor: Tensor) -> Tensor:
    """The dimensions in the order that they have in memory."""
    return tensor.detach().permute(_order(tensor)).contiguous()


def _order(tensor: Tensor) -> list[int]:
    return sorted(range(tensor.dim()), key=lambda dimension: -tensor.stride()[dimension])


def _size(leaves: list[Any]) -> int:
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
