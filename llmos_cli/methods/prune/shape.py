"""Shape: whole blocks go for part of the cut and units for the rest, as few blocks kept as the measured KL allows: fewer blocks are faster (ShortGPT, arXiv:2403.03853; ZipLM, arXiv:2302.04089)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from llmos_cli.methods.prune import width
from llmos_cli.methods.prune.width import NEEDS, counts, gradients, rank, refit

__all__ = ["NEEDS", "Options", "chosen", "counts", "depths", "gradients", "rank", "refit"]


class Options(width.Options):
    multiple: int = Field(64, ge=1)
    """Widths are multiples of this, or of the largest power of two up to a sixteenth of the parent's; heads go whole."""
    damping: float = Field(0.01, gt=0)
    """Added to the Hessian's diagonal, as a share of its mean; raised where the factorisation fails."""
    importance: Literal["error", "activation", "taylor"] = "error"
    """Which units go first: `error` by what the refitted readers lose without them, ranked anew as units go; `activation` by the size
    of what they add to their readers' outputs; `taylor` by what the loss would lose, to first order (arXiv:1906.10771)."""
    asymmetry: float = Field(0.75, ge=0, le=1)
    """How far a matrix that is refitted also makes up for the error of the layers before; 0: not at all."""
    hidden: float = Field(0.0, ge=0, le=1)
    """Share of the cut that is taken from the width of the residual stream, the embeddings' included (`hidden_size`); 1: all of it."""
    slack: float = Field(1.3, ge=1)
    """A shape of fewer blocks is taken up to so many times the least KL found, measured before healing: it is faster, and heals better
    than its KL says."""


def depths(most: int, options: Options) -> list[int]:
    """How many blocks may go, where `most` of them are the whole cut: none, half of these, all. Each is tried."""
    return sorted({0, (most + 1) // 2, most})


def chosen(kl: Mapping[int, float], options: Options) -> int:
    """The number of blocks that go, by the KL that was measured with so many gone."""
    least = min(kl.values())
    return max(gone for gone, found in kl.items() if found <= options.slack * least)
