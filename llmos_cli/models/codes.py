"""The codes of a quantized checkpoint as they are stored, each read when it is asked for: for exports that keep them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from llmos_cli.models import headers, packing
from llmos_cli.models.dequantize import Read, bits_by_layer
from llmos_cli.models.load import load_config
from llmos_cli.models.quantized import Quantized


@contextmanager
def stored_codes(directory: Path) -> Iterator[Mapping[str, Quantized]]:
    """Every weight kept as whole-numbered codes, by the dense weight's name on disk; of a dense checkpoint, none."""
    entries = headers.of_directory(directory)
    known = bits_by_layer(load_config(directory), entries)
    bits = {name: width for name, width in known.items() if name not in entries or entries[name].dtype == "I8"}
    with ExitStack() as stack:
        yield _Codes(Read(entries, stack), headers.dense_shapes(entries), bits)


class _Codes(Mapping[str, Quantized]):
    def __init__(self, read: Read, shapes: Mapping[str, tuple[int, ...]], bits: Mapping[str, int]) -> None:
        self._read, self._shapes, self._bits = read, shapes, bits

    def __getitem__(self, name: str) -> Quantized:
        bits, (outputs, inputs) = self._bits[name], _matrix(self._shapes[name])
        scales_OG = self._read(f"{name}_scale").reshape(outputs, -1)
        groups = scales_OG.shape[1]
        zeros_OG = self._zeros(name, bits, outputs)
        codes = self._codes(name, bits, inputs)
        return Quantized(codes, scales_OG, bits, -1 if groups == 1 else inputs // groups, zeros_OG)

    def _codes(self, name: str, bits: int, inputs: int) -> Tensor:
        if self._read.has(f"{name}_packed"):
            return packing.unpack(self._read(f"{name}_packed"), bits, inputs)
        return self._read(name)

    def _zeros(self, name: str, bits: int, outputs: int) -> Tensor | None:
        if not self._read.has(f"{name}_zero_point"):
            return None
        zeros = self._read(f"{name}_zero_point")
        return packing.unpack(zeros.t(), bits, outputs).t() if self._read.has(f"{name}_packed") else zeros

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs, and all else: a convolution's kernel counts as inputs."""
    return shape[0], math.prod(shape[1:])
