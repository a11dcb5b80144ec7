"""Depth: whole blocks go, those first that change what passes through them least (ShortGPT, Men et al. 2024, arXiv:2403.03853)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from llmos_cli.core.section import Section
from llmos_cli.models.statistics import Need

NEEDS: frozenset[Need] = frozenset({"norms"})


class Options(Section):
    by: Literal["influence", "kl"] = "influence"
    """`influence` looks at hidden states, in one pass over all calibration samples; `kl` at the model's answers without the block, those
    that are gone before it gone too: dearer, and it asks what counts."""


def influence(before_ND: Tensor, after_ND: Tensor, options: Options) -> Tensor:
    """[N] how far a block turns each position's hidden state: 1 - cosine (equation 1 of the paper)."""
    turned_N: Tensor = 1 - F.cosine_similarity(before_ND.float(), after_ND.float(), dim=-1)
    return torch.nan_to_num(turned_N)
