"""A cut of the residual stream: the same channels go in all layers, those whose loss the layers that read them can best make up for; then,
block by block, what reads the stream and what writes to it is fitted to what the whole model gives there.

Shapes: D channels of the parent, K of the result, O outputs, I inputs of a matrix in the result, J of the same in the parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli import device
from llmos_cli.core.section import Section
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Progress
from llmos_cli.methods.hessian import damped
from llmos_cli.methods.structure import Ranking, Reader
from llmos_cli.models.activations import Spill, Store
from llmos_cli.models.blocks import blocks
from llmos_cli.models.calibrate import Streams
from llmos_cli.models.inputs import Inputs, leaders
from llmos_cli.models.matrices import Matrix, matches, matrices
from llmos_cli.models.replay import replaying
from llmos_cli.models.residual import Channels, allowed, channels, scaled, thinned
from llmos_cli.models.statistics import add_gram
from llmos_cli.models.stream import Unfit
from llmos_cli.operations.compression.narrow import NEGLIGIBLE, Cut, narrow, size_of
from llmos_cli.operations.compression.saliency import first_order
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change
from llmos_cli.tasks.base import Batch


def narrower(
    subject: Subject, module: ModuleType, own: Section, *, sparsity: float, ignore: Sequence[str], batches: Sequence[Batch],
    emit: Emit,
) -> Cut:  # fmt: skip
    """Cut a share `sparsity` of the model's parameters out of it: of that, what the method says out of the residual stream, and the
    rest out of what lies inside the blocks."""
    hidden: float = getattr(own, "hidden", 0.0)
    if not hidden:
        return narrow(subject, module, own, sparsity=sparsity, ignore=ignore, batches=batches, emit=emit)
    model, told, changes = thin(
        subject.model, module, own, share=hidden * sparsity, ignore=ignore, batches=batches, emit=emit
    )
    rest = 1 - (1 - sparsity) * size_of(subject.model) / size_of(model)
    if hidden == 1 or rest <= NEGLIGIBLE:
        return Cut(model, [told], changes, {})
    here = replace(subject, model=model, matrices=matrices(model, ignore))
    cut = narrow(here, module, own, sparsity=rest, ignore=ignore, batches=batches, emit=emit)
    return Cut(cut.model, [told, *cut.told], {**changes, **cut.changes}, cut.left_alone)


def thin(
    model: PreTrainedModel, module: ModuleType, own: Section, *, share: float, ignore: Sequence[str],
    batches: Sequence[Batch], emit: Emit,
) -> tuple[PreTrainedModel, str, Mapping[str, Change]]:  # fmt: skip
    """A new model with about a `share` of the stream's channels gone, what became of them in words, and of each matrix.

    UsageError where the architecture has no stream whose width is its own.
    """
    try:
        found = channels(model, batches[0])
        if ignored := [name for name in found.axes if matches(name.rpartition(".")[0], ignore)]:
            raise Unfit(f"{ignored[0]} is ignored, as the config says")
        width = allowed(model.config, (1 - share) * found.width, max(module.counts(found.width, own)[0], 1))
    except Unfit as unfit:
        raise UsageError(
            f"the residual stream of a {model.config.model_type} cannot be made narrower: {unfit}",
            hint="leave `hidden` out: `--method width` cuts what lies inside the blocks",
        ) from unfit
    kept_D = ranking_of(model, found, module, own, batches).kept(width)
    smaller = thinned(model, found, kept_D)
    changes = Fitting(model, smaller, found, kept_D, own, batches).carried_out(emit)
    return smaller, f"hidden_size {found.width} -> {width}", changes


def ranking_of(
    model: PreTrainedModel, found: Channels, module: ModuleType, own: Section, batches: Sequence[Batch]
) -> Ranking:
    """Channels, the first to go first, by what all readers lose without them, each as a share of what it gives."""
    given = _given_by_norms(model, found, batches)
    moves: dict[str, Tensor] = {}
    if module.gradients(own):
        own_names = dict(model.named_parameters()).keys() & found.read.keys()
        for name, moved_SI in first_order(model, {name: _matrix(model, name) for name in own_names}, batches).items():
            moves[found.read[name]] = moves.get(found.read[name], torch.zeros(())) + moved_SI
    index_NR = torch.arange(found.width)[:, None]
    readers = [
        Reader(_joined(model, found, norm, hessian_DD), hessian_DD, index_NR, moves.get(norm))
        for norm, hessian_DD in given.items()
        if norm in moves or not moves
    ]
    ranking: Ranking = module.rank(readers, own)
    return ranking


@torch.no_grad()
def _given_by_norms(model: PreTrainedModel, found: Channels, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """[D, D] for each norm: X^T X of what it gives."""
    sums: dict[str, Tensor] = {}
    mask: list[Tensor | None] = [None]

    def listen(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        hessian_DD = sums.setdefault(name, output.new_zeros(found.width, found.width, dtype=torch.float32))
        for rows_ND in Inputs(output).rows(mask[0]):
            add_gram(hessian_DD, rows_ND.float())

    with ExitStack() as hooks:
        for name in sorted(set(found.read.values())):
            hooks.callback(model.get_submodule(name).register_forward_hook(partial(listen, name)).remove)
        for batch in batches:
            mask[0] = batch.get("attention_mask")
            model.eval()(**batch)
    return sums


def _joined(model: PreTrainedModel, found: Channels, norm: str, hessian_DD: Tensor) -> Tensor:
    """[D, D] R with R^T R the sum of W^T W over the readers of a norm, each of size 1: they lose what R would."""
    square_DD = torch.zeros_like(hessian_DD)
    for name in (name for name, read in found.read.items() if read == norm):
        gram_DD = _flat(model, found, name).T @ _flat(model, found, name)
        square_DD += gram_DD / (gram_DD * hessian_DD).sum().clamp_min(1e-30)
    values_D, vectors_DD = torch.linalg.eigh(square_DD)
    joined_DD: Tensor = values_D.clamp_min(0).sqrt()[:, None] * vectors_DD.T
    return joined_DD


def _flat(model: PreTrainedModel, found: Channels, name: str) -> Tensor:
    """[O, I], whichever way the layer keeps it."""
    weight = model.get_submodule(name.rpartition(".")[0]).weight
    assert isinstance(weight, Tensor)
    reads = name in found.read
    return weight.detach().float() if found.axes[name] == (1 if reads else 0) else weight.detach().float().T


def _matrix(model: PreTrainedModel, name: str) -> Matrix:
    layer_name = name.rpartition(".")[0]
    layer = model.get_submodule(layer_name)
    assert isinstance(layer.weight, Tensor)
    return Matrix(name, layer_name, layer, layer.weight.shape)


class Fitting:
    """The parent and the smaller model side by side, both run block by block."""

    def __init__(
        self, model: PreTrainedModel, smaller: PreTrainedModel, found: Channels, kept_D: Tensor, own: Section,
        batches: Sequence[Batch],
    ) -> None:  # fmt: skip
        self.model, self.smaller, self.found, self.own, self.batches = model, smaller, found, own, batches
        self.kept = kept_D.nonzero()[:, 0].to(model.device)
        own_names = dict(smaller.named_parameters()).keys()
        self.fitted = [name for name in (*found.read, *sorted(found.written)) if name in own_names]
        self.tied = [name for name in found.read if name not in own_names]
        self.changes: dict[str, Change] = {}

    def carried_out(self, emit: Emit) -> Mapping[str, Change]:
        stack = blocks(self.model)
        with replaying(self.model, stack) as whole, replaying(self.smaller, blocks(self.smaller)) as part:
            whole.check(self.batches[0])
            before, now = Streams(whole, self.batches, ()), Streams(part, self.batches, ())
            for index in range(len(stack) + 1):
                inside = f"{stack[index].name}." if index < len(stack) else ""
                names = [name for name in self._rest() if name.startswith(inside)]
                self._block(before, now, index, names)
                emit(Progress("refit", index + 1, len(stack) + 1, "block", memory=device.memory_used()))
        return self.changes

    def _rest(self) -> list[str]:
        return [name for name in (*self.fitted, *self.tied) if name not in self.changes]

    def _block(self, before: Streams, now: Streams, index: int, names: Sequence[str]) -> None:
        watched = {name.rpartition(".")[0]: self.model.get_submodule(name.rpartition(".")[0]) for name in names}
        given, originals = Spill().store(), dict[str, str]()
        for number in range(len(self.batches)):
            seen, output = before.watch(index, number, watched, before.compressed[number])
            originals |= {name: leader for name, leader in leaders(seen).items() if name not in originals}
            given[number] = {leader: seen[leader][0].source for leader in dict.fromkeys(originals.values())}
            before.compressed[number] = output if index < len(before.replay.stack) else None
        for leader in dict.fromkeys(originals.values()):
            self._group(now, index, leader, [name for name, first in originals.items() if first == leader], given)
        if index < len(now.replay.stack):
            now.advance(index)

    def _group(self, now: Streams, index: int, leader: str, names: Sequence[str], given: Store) -> None:
        """Matrices that are fed alike: each answers on what the smaller model gives as nearly as it can as the parent's does."""
        layer_name = leader.rpartition(".")[0]
        only = {layer_name: self.smaller.get_submodule(layer_name)}
        hessian_II = cross_IJ = torch.zeros(())
        for number, batch in enumerate(self.batches):
            mask = batch.get("attention_mask")
            seen, _ = now.watch(index, number, only, now.compressed[number], until=1)
            theirs = Inputs(given[number][leader]).rows(mask)
            for rows_NI, rows_NJ in zip(seen[leader][0].rows(mask), theirs, strict=True):
                hessian_II = hessian_II + rows_NI.T @ rows_NI
                cross_IJ = cross_IJ + rows_NI.T @ rows_NJ
        if not torch.isfinite(hessian_II).all():
            raise LlmosError(
                f"what {leader} is given is not finite", hint="evaluate the parent: it overflows on some sample"
            )
        for name in names:
            if name in self.tied:
                self._scale_norm(name, hessian_II, cross_IJ)
            else:
                self._refit(name, hessian_II, cross_IJ)

    def _refit(self, name: str, hessian_II: Tensor, cross_IJ: Tensor) -> None:
        whole_OJ, start_OI = (_flat(model, self.found, name) for model in (self.model, self.smaller))
        if name in self.found.written:
            whole_OJ = whole_OJ[self.kept]
        fitted_OI = refit(start_OI, whole_OJ, hessian_II, cross_IJ, self.own.damping)  # type: ignore[attr-defined]
        fitted_OI = fitted_OI.where(start_OI != 0, 0)  # what was pruned stays
        parameter = self.smaller.get_parameter(name)
        with torch.no_grad():
            parameter.copy_(fitted_OI if parameter.shape == fitted_OI.shape else fitted_OI.T)
        self.changes[name] = Change({"gone": 1 - len(self.kept) / self.found.width})

    def _scale_norm(self, name: str, hessian_KK: Tensor, cross_KD: Tensor) -> None:
        """What the embeddings read cannot be fitted without moving what they write: of their norm each channel's scale is."""
        whole_OD = _flat(self.model, self.found, name)
        by_K = scales(whole_OD[:, self.kept], whole_OD, hessian_KK, cross_KD, self.own.damping)  # type: ignore[attr-defined]
        with torch.no_grad():
            scaled(self.smaller, self.found, self.found.read[name], by_K)
        self.changes[name] = Change(skipped="it is tied to the embeddings: its norm makes up for what went")


def refit(start_OI: Tensor, whole_OJ: Tensor, hessian_II: Tensor, cross_IJ: Tensor, damping: float) -> Tensor:
    """The W that brings X W^T nearest to X_ref whole^T, not far from `start`: H = X^T X, cross = X^T X_ref."""
    right_OI = whole_OJ @ cross_IJ.T - start_OI @ hessian_II
    fitted_OI: Tensor = start_OI + torch.linalg.solve(damped(hessian_II, damping), right_OI.T).T
    return fitted_OI


def scales(part_OK: Tensor, whole_OD: Tensor, hessian_KK: Tensor, cross_KD: Tensor, damping: float) -> Tensor:
    """[K] s that brings X diag(s) part^T nearest to X_ref whole^T: ((X^T X) o (part^T part)) s = diag(X^T X_ref whole^T part)."""
    normal_KK = hessian_KK * (part_OK.T @ part_OK)
    right_K = (cross_KD * (part_OK.T @ whole_OD)).sum(1)
    one_K = torch.ones_like(right_K)
    found_K: Tensor = one_K + torch.linalg.solve(damped(normal_KK, damping), right_K - normal_KK @ one_K)
    return found_K
