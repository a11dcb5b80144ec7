"""A cut in depth: each block's influence is measured in one pass, those with the least go, and the rest is a plain smaller model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.core.section import Section
from llmos_cli.errors import UsageError
from llmos_cli.events import Emit, Layer, Progress
from llmos_cli.models.blocks import blocks
from llmos_cli.models.matrices import matches
from llmos_cli.models.shallow import shortened
from llmos_cli.operations.compression.missing import least_missed
from llmos_cli.operations.compression.narrow import Cut
from llmos_cli.operations.compression.subject import Subject
from llmos_cli.operations.compression.sweep import Change
from llmos_cli.tasks.base import Batch


def shorten(
    subject: Subject, module: ModuleType, own: Section, *, sparsity: float, ignore: Sequence[str], batches: Sequence[Batch],
    emit: Emit,
) -> Cut:  # fmt: skip
    """Leave blocks out until a share `sparsity` of the parameters is gone; the last one goes only if that comes closer to it."""
    model = subject.model
    names = [block.name for block in blocks(model)]
    spared = _alone(model, names) | {name: "ignored, as the config says" for name in names if matches(name, ignore)}
    measure = "kl" if getattr(own, "by", "") == "kl" else "influence"
    if measure == "kl":
        found = least_missed(model, batches, spared)
    else:
        seen = influences(model, module, own, batches, emit)
        found = iter(sorted(((name, seen[name]) for name in names if name not in spared), key=lambda each: each[1]))
    gone = _gone(model, found, sparsity)
    smaller = shortened(model, [index for index, name in enumerate(names) if name not in gone])
    for name in names:
        emit(Layer(name, {measure: gone[name]} if name in gone else {}, "" if name in gone else "it stays"))
    numbers = ", ".join(name.rpartition(".")[2] for name in names if name in gone)
    told = [f"{len(names) - len(gone)} of {len(names)} blocks left, without {numbers}"]
    return Cut(smaller, told, {name: Change({measure: value}) for name, value in gone.items()}, spared)


def _alone(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """Of a stack of several kinds (convolutions and attention) those that are the only one of theirs: readers rely on each."""
    kinds = getattr(model.config, "layer_types", None) or []
    counts = Counter(kinds)
    if len(counts) < 2 or len(kinds) != len(names):
        return {}
    return {name: f"the only {kind} block" for name, kind in zip(names, kinds, strict=True) if counts[kind] == 1}


def influences(
    model: PreTrainedModel, module: ModuleType, own: Section, batches: Sequence[Batch], emit: Emit
) -> dict[str, float]:
    """What the method says of each block, by name, averaged over the calibration positions that are not padding."""
    seen: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(batches, 1):
        for name, (before_BLD, after_BLD) in _through(model, batch).items():
            rows = batch.get("attention_mask", torch.ones(before_BLD.shape[:2], device=before_BLD.device)).bool()
            inside = rows if rows.shape == before_BLD.shape[:2] else torch.ones_like(before_BLD[..., 0]).bool()
            seen.setdefault(name, []).append(
                module.influence(before_BLD[inside], after_BLD[inside], own).double().cpu()
            )
        emit(Progress("rank", number, len(batches), "batch"))
    return {name: float(torch.cat(found).mean()) for name, found in seen.items()}


@torch.no_grad()
def _through(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The hidden states before and after each block, [B, L, D]; UsageError where a block is not from states to states alike."""
    states: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else next(iter(kwargs.values()))
            after = output[0] if isinstance(output, tuple) else output
            if not isinstance(after, Tensor) or before.dim() != 3 or before.shape != after.shape:
                raise UsageError(
                    f"{name} does not give hidden states of the shape it is given, so it cannot be left out",
                    hint="`--method width` makes blocks narrower instead",
                )
            states[name] = before, after

        return hook

    hooks = [block.module.register_forward_hook(record(block.name), with_kwargs=True) for block in blocks(model)]
    try:
        model.eval()(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return states


def check_reach(model: PreTrainedModel, sparsity: float) -> None:
    """UsageError where whole blocks are too much, or all of them too little."""
    sizes, total = _sizes(model)
    if sparsity * total < min(sizes.values()) / 2:
        raise UsageError(
            f"the smallest block holds {min(sizes.values()) / total:.1%} of the parameters, and {sparsity:.1%} are to go",
            hint="a higher --sparsity, or `--method width`, which takes channels out of all blocks",
        )
    if sparsity * total >= sum(sizes.values()):
        raise _nothing_left(sparsity)


def _sizes(model: PreTrainedModel) -> tuple[dict[str, int], int]:
    """Parameters of each block, and of the model."""
    sizes = {block.name: sum(p.numel() for p in block.module.parameters()) for block in blocks(model)}
    return sizes, sum(parameter.numel() for parameter in model.parameters())


def _nothing_left(sparsity: float) -> UsageError:
    return UsageError(f"without {sparsity:.1%} of its parameters not one block would be left", hint="lower --sparsity")


def _gone(model: PreTrainedModel, order: Iterable[tuple[str, float]], sparsity: float) -> dict[str, float]:
    """The blocks to leave out with what was measured of each: one at least, less than all."""
    check_reach(model, sparsity)
    sizes, total = _sizes(model)
    wanted = sparsity * total
    gone: dict[str, float] = {}
    for name, value in order:
        saved = sum(sizes[each] for each in gone)
        if gone and saved + sizes[name] / 2 > wanted:
            break
        gone[name] = value
    if len(gone) == len(sizes):
        raise _nothing_left(sparsity)
    return gone
