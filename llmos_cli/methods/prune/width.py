"""Width: hidden channels, heads, filters or units go whose loss the matrix that reads them can best make up for (ZipLM, Kurtic et al. 2023, arXiv:2302.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from llmos_cli.core.section import Section
from llmos_cli.methods.hessian import alive, factored, inverse_factor, moved_target
from llmos_cli.methods.structure import Ranking, Reader
from llmos_cli.models.statistics import Need, Statistics

NEEDS: frozenset[Need] = frozenset({"hessian", "drift"})

PORTIONS = 64
"""Units are ranked anew after each of so many portions has gone: one by one would be exact, and a hundred times the work."""


class Options(Section):
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


def counts(units: int, options: Options) -> list[int]:
    """How many of `units` may stay."""
    step = min(options.multiple, 1 << max(0, (units // 16).bit_length() - 1))
    return [*range(step, units, step), units]


def gradients(options: Options) -> bool:
    """Whether `rank` wants to know what the loss would lose without an input."""
    return options.importance == "taylor"


def rank(readers: Sequence[Reader], options: Options) -> Ranking:
    """Which units go first, each time those whose absence the readers' other inputs make up for best, unless `importance` says otherwise;
    what that costs is told alike.

    Without unit u a matrix W errs by tr(W_u (H^-1)_uu^-1 W_u^T), summed over the rows it was calibrated on (equation 2 of the
    paper); what is left of W and of H^-1 then follows in closed form.
    """
    states = [_State(reader, options.damping) for reader in readers]
    worth_N = _worth(readers, options)
    units = len(readers[0].index_NR)
    stays_N = torch.ones(units, dtype=torch.bool)
    order: list[int] = []
    cost = [0.0]
    while len(order) < units:
        loss_N = sum(state.losses() for state in states) if worth_N is None else worth_N
        loss_N = loss_N.masked_fill(~stays_N, torch.inf)  # type: ignore[union-attr]
        go = loss_N.sort(stable=True).indices[: min(max(1, units // PORTIONS), units - len(order))]
        whole = sum(state.leave_out(go) for state in states)
        # Of units that go together only the sum is known exactly: it is shared out as they would have cost alone.
        shares = (loss_N[go] / loss_N[go].sum().clamp_min(1e-30)).cumsum(0) * whole
        cost += [cost[-1] + float(share) for share in shares][: len(go)]
        order += go.tolist()
        stays_N[go] = False
    return Ranking(torch.tensor(order), torch.tensor(cost))


def _worth(readers: Sequence[Reader], options: Options) -> Tensor | None:
    """[N] by which units are ranked once and for all; None where that changes as they go."""
    if options.importance == "activation":
        size_I = [reader.weight_OI.square().sum(0) * reader.hessian_II.diagonal() for reader in readers]
        each = [part_I[reader.index_NR].sum(1) for part_I, reader in zip(size_I, readers, strict=True)]
        return torch.stack(each).sum(0).cpu()
    if options.importance == "taylor":
        assert all(reader.moves_SI is not None for reader in readers), "`gradients` asked for them"
        moves = [reader.moves_SI[:, reader.index_NR].sum(2) for reader in readers if reader.moves_SI is not None]
        return torch.stack(moves).sum(0).square().mean(0).cpu()
    return None


class _State:
    """A reader while units go: its weights and the inverse of its Hessian, of the inputs that are left."""

    def __init__(self, reader: Reader, damping: float) -> None:
        upper_II = inverse_factor(reader.hessian_II, damping)
        self.inverse_II = upper_II.T @ upper_II
        # What never sees an input is worth nothing, whatever its weights are.
        self.weight_OI = reader.weight_OI * alive(reader.hessian_II)
        self.index_NR = reader.index_NR.to(reader.weight_OI.device)

    def losses(self) -> Tensor:
        """[N] what leaving out each unit alone would cost."""
        if self.index_NR.shape[1] == 1:
            flat_N = self.index_NR[:, 0]
            alone_I: Tensor = self.weight_OI.square().sum(0) / self.inverse_II.diagonal().clamp_min(1e-30)
            return alone_I[flat_N].cpu()
        weight_NOR = self.weight_OI[:, self.index_NR].transpose(0, 1)
        own_NRR = self.inverse_II[self.index_NR[:, :, None], self.index_NR[:, None, :]]
        alone_N: Tensor = torch.linalg.solve(_sound(own_NRR), weight_NOR.mT).mul(weight_NOR.mT).sum((1, 2))
        return alone_N.cpu()

    def leave_out(self, units: Tensor) -> float:
        """The units go together; what that costs in all."""
        gone = self.index_NR[units].flatten()
        weight_OC, cross_CI = self.weight_OI[:, gone], self.inverse_II[gone]
        solved_CI = torch.linalg.solve(_sound(cross_CI[:, gone]), cross_CI)
        own_CO = torch.linalg.solve(_sound(cross_CI[:, gone]), weight_OC.T)
        self.weight_OI -= weight_OC @ solved_CI
        self.inverse_II -= cross_CI.T @ solved_CI
        self.weight_OI[:, gone] = 0
        self.inverse_II[gone] = 0
        self.inverse_II[:, gone] = 0
        return float((own_CO * weight_OC.T).sum().clamp_min(0))


def _sound(block_RR: Tensor) -> Tensor:
    """Its diagonal never 0, as that of a unit that went already is."""
    tiny = torch.finfo(block_RR.dtype).tiny ** 0.5
    return block_RR + torch.diag_embed((block_RR.diagonal(dim1=-2, dim2=-1) <= 0).to(block_RR.dtype) + tiny)


def refit(weight_OI: Tensor, kept_I: Tensor, statistics: Statistics, options: Options) -> Tensor:
    """The matrix that answers on the inputs `kept_I` (bool) as nearly as can be as it did on all: W H[:, K] H[K, K]^-1, else 0."""
    refitted_OI, hessian_II = torch.zeros_like(weight_OI), statistics.hessian_II
    with factored(statistics, options.damping) as factor:
        target_OI = moved_target(weight_OI, statistics.drift_II, factor, options.asymmetry)
        right_KO = (target_OI @ hessian_II[:, kept_I]).T
        refitted_OI[:, kept_I] = torch.linalg.solve(hessian_II[kept_I][:, kept_I], right_KO).T
    return refitted_OI
