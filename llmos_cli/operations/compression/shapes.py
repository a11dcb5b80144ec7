"""In which shape `compress` cuts a share of the parameters out: in units of all blocks, in whole blocks, or some of each, as is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.errors import UsageError
from llmos_cli.events import Emit
from llmos_cli.methods.prune import shape
from llmos_cli.operations.compression.narrow import Cut
from llmos_cli.operations.compression.reshape import without
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.thin import narrower
from llmos_cli.tasks.base import Batch

OPTIONS = shape.Options()
STREAM = shape.Options(hidden=0.5)
"""Half of the cut out of the residual stream, embeddings included, and no blocks."""
WORTH = 0.05
"""Nats a position: a cut that costs less is not looked for in the residual stream too, which is dear at first."""
COMPARABLE = 3.0
"""What lies between two shapes is looked at where neither has so many times the other's KL: else it has more than the better one."""


@dataclass(frozen=True)
class Shape:
    """`gone`: whole blocks; `kl`: to the parent, nats a position, before healing; `told`: what was cut, in words; `folder`: the model.

    `refused`: why the share cannot be cut out so, and then there is no model."""

    gone: int
    kl: float = 0.0
    told: Sequence[str] = ()
    folder: Path = Path()
    refused: str = ""

    @property
    def method(self) -> str:
        """The method of `prune` that cuts so."""
        if not self.gone:
            return "width"
        return "shape" if self.told[1:] else "depth"


Look = Callable[[int], Shape]


def best_shape(least: int, most: int, look: Look) -> Shape:
    """Of the shapes without `least` to `most` blocks, the one that the method `shape` would take; both ends are looked at, and the
    middle where it may be better. UsageError where none can be had."""
    seen = {gone: look(gone) for gone in sorted({least, most})}
    middle = (least + most + 1) // 2
    if middle not in seen and _comparable(seen):
        seen[middle] = look(middle)
    kl = {gone: found.kl for gone, found in seen.items() if not found.refused}
    if not kl:
        raise UsageError(seen[least].refused, hint="lower compress.cuts")
    return seen[shape.chosen(kl, OPTIONS)]


def with_stream(best: Shape, look: Callable[[], Shape]) -> Shape:
    """`best`, or what comes of cutting the residual stream too, where that is better."""
    if best.kl < WORTH:
        return best
    other = look()
    return other if not other.refused and other.kl < best.kl else best


def _comparable(ends: Mapping[int, Shape]) -> bool:
    low, high = sorted(found.kl for found in ends.values())
    return any(found.refused for found in ends.values()) or high <= COMPARABLE * low


def cut(
    whole: Subject, fresh: Callable[[], Subject], gone: Sequence[str], own: shape.Options, *, sparsity: float,
    ignore: Sequence[str], batches: Sequence[Batch], emit: Emit,
) -> Cut:  # fmt: skip
    """A share `sparsity` of `whole` cut out, the blocks `gone` among it; `fresh` gives a model that may be cut into."""
    if gone:
        return without(whole, shape, own, gone, sparsity, ignore, batches, emit)
    here = whole if own.hidden else fresh()  # the stream is cut out of a copy
    return narrower(here, shape, own, sparsity=sparsity, ignore=ignore, batches=batches, emit=emit)
