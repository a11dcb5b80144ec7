"""A weight that lies in its file: of a vocabulary's rows only those are read that are looked up, of a head a stripe at a time.

An embedding and a head are the largest tensors outside a model's blocks, and hardly any of an embedding is needed at once. To the
model such a weight is a parameter like any other, in fp32, that no gradient reaches; whatever else is done with it reads all of it.

Shapes: V rows (tokens of the vocabulary, outputs of a head), D columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from llmos_cli.models import headers
from llmos_cli.models.rewrite import DTYPES

STRIPE = 1 << 20
"""Weights of a head that are in memory at once (4 MB in fp32)."""


class OnFile(torch.Tensor):
    """[V, D] in fp32, on the CPU, of what `entry` says in any floating-point type."""

    entry: headers.Entry

    @staticmethod
    def __new__(cls, entry: headers.Entry) -> OnFile:
        made = torch.Tensor._make_wrapper_subclass(cls, entry.shape, dtype=torch.float32)  # type: ignore[attr-defined]
        made.entry = entry
        return made

    @staticmethod
    def can_be(entry: headers.Entry) -> bool:
        """Whether the file holds a matrix of floats: of codes something has to be made first."""
        return len(entry.shape) == 2 and entry.dtype in DTYPES

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnFile({self.entry})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.embedding and len(args) > 1 and isinstance(args[1], OnFile):
            return _looked_up(args[1], args[0])
        if func is F.linear and len(args) > 1 and isinstance(args[1], OnFile):
            return _multiplied(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias"))
        with torch._C.DisableTorchFunctionSubclass():  # what comes of it is no OnFile, as the default would have it
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return OnFile(args[0].entry)
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") == torch.device("meta"):
            return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
        if func._schema.is_mutable and isinstance(
            args[0], OnFile
        ):  # what is read is a copy, on which the change would be lost
            raise RuntimeError(f"{args[0].entry.file} is not this process's to write to")
        args, read = tree_map(_read, (args, dict(kwargs or {})))
        return func(*args, **read)


def _read(value: Any) -> Any:
    return _tensor(_stored(value.entry), value.entry) if isinstance(value, OnFile) else value


def _looked_up(weight: OnFile, ids: Tensor) -> Tensor:
    """[..., D] of ids [...]."""
    if ids.numel() and int(ids.min()) < 0:
        raise IndexError("index out of range in self")  # in torch's words; numpy would count from the end
    rows = _tensor(_stored(weight.entry)[ids.flatten().numpy()], weight.entry)
    return rows.view(*ids.shape, weight.shape[1])


def _multiplied(inputs: Tensor, weight: OnFile, bias: Tensor | None) -> Tensor:
    """[..., V] of inputs [..., D], as one product would give them, up to rounding."""
    stored, height = _stored(weight.entry), max(1, STRIPE // weight.shape[1])
    stripes = [slice(start, start + height) for start in range(0, len(weight), height)]
    found: Tensor | None = None
    for rows in stripes:
        part = F.linear(inputs, _tensor(stored[rows], weight.entry), None if bias is None else bias[rows])
        if found is None:
            found = part.new_empty(*part.shape[:-1], len(weight))
        found[..., rows] = part
    assert found is not None, "a head has outputs"
    return found


def _stored(entry: headers.Entry) -> NDArray[np.uint8]:
    """[V, bytes of a row]: a window on the file, whose pages count as this process's memory only as long as somebody holds it."""
    rows, *columns = entry.shape
    shape = (rows, math.prod(columns) * headers.BITS[entry.dtype] // 8)
    return np.memmap(entry.file, mode="r", offset=entry.start, shape=shape, dtype=np.uint8)


def _tensor(rows: NDArray[np.uint8], entry: headers.Entry) -> Tensor:
    """In fp32; a copy, as a window may lie anywhere in a word."""
    return torch.from_numpy(np.array(rows)).view(DTYPES[entry.dtype]).float()
