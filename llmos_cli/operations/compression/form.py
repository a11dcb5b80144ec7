"""The form that a quantized matrix has: bits, group size, symmetry; as asked for linear layers, the one that there is for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

from llmos_cli.errors import UsageError
from llmos_cli.methods.grid import usable_group
from llmos_cli.models.matrices import Matrix
from llmos_cli.operations.compression.subject import outranked
from llmos_cli.options.verbs import QuantizeOptions

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved

OTHER_BITS = 8
"""Of convolutions and LSTMs, one scale for each output channel: the only format there is for them."""

UNCODED = "this model has no linear layers to choose bits for"


@dataclass(frozen=True)
class Form:
    """How linear layers are stored: `bits` of a weight, `group_size` inputs that share a scale, and the bits of the layers that a
    glob pattern of `layers` matches, the last one that does."""

    bits: int
    group_size: int
    layers: Mapping[str, int] = field(default_factory=dict)
    symmetric: bool = True
    floats: bool = False

    def bits_of(self, matrix: Matrix) -> int:
        if not isinstance(matrix.layer, nn.Linear):
            return OTHER_BITS
        return next(
            (bits for glob, bits in reversed([*self.layers.items()]) if fnmatchcase(matrix.layer_name, glob)), self.bits
        )

    def group_of(self, matrix: Matrix) -> int:
        return usable_group(matrix.inputs, self.group_size if isinstance(matrix.layer, nn.Linear) else -1)

    def check(self, matrices: Mapping[str, Matrix]) -> None:
        """UsageError for a pattern that no linear layer has."""
        names = [matrix.layer_name for matrix in matrices.values() if isinstance(matrix.layer, nn.Linear)]
        if lost := next((glob for glob in self.layers if not any(fnmatchcase(name, glob) for name in names)), None):
            raise UsageError(
                f"quantize.layers: no linear layer is called {lost!r}",
                hint=f"names are like {names[0]}" if names else UNCODED,
            )


def form_of(resolved: Resolved, module: ModuleType) -> Form:
    """What the config asks for. A method may have one form only (`BITS`, `GROUP_SIZE`); what a config file alone says otherwise
    gives way to the method named on the command line."""
    options: QuantizeOptions = resolved.config.quantize
    found = []
    for key, asked, only in (
        ("bits", options.bits, getattr(module, "BITS", None)),
        ("group_size", options.group_size, getattr(module, "GROUP_SIZE", None)),
    ):
        if only is not None and asked != only and not outranked(resolved, f"quantize.{key}", "quantize.method"):
            raise UsageError(f"{options.method} has {key} {only}, not {asked}", hint=f"leave quantize.{key} out")
        found.append(asked if only is None else only)
    free = getattr(module, "BITS", None) is None
    if not free and not options.symmetric and not outranked(resolved, "quantize.symmetric", "quantize.method"):
        raise UsageError(f"the codes of {options.method} are symmetric", hint="leave quantize.symmetric out")
    return Form(found[0], found[1], options.layers if free else {}, options.symmetric or not free, is_fp8(module))


def is_fp8(module: ModuleType) -> bool:
    return getattr(module, "FLOATS", False)
