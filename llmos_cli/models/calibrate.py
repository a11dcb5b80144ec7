"""Calibration, block by block: what each layer's inputs look like once the layers before it have been compressed.

For each block in forward order: measure its layers' inputs in the compressed stream (and, for methods that make up for drift, in
the reference stream of the original weights), let the visitor change its weights, run it again to feed the next block. Sums are in
fp32 over batches in order, so the same inputs give the same bits.

Shapes: N rows of inputs (tokens, pixels, steps), I inputs of a layer, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli.models.blocks import Block, blocks
from llmos_cli.models.replay import Output, Replay, replaying

Need = Literal["norms", "hessian", "drift"]
"""What a method asks for: the norm of each input, X^T X, and X^T (X_ref - X)."""

ROWS = 16384
"""Rows unfolded or multiplied at once: bounds the memory of convolutions on large images."""


@dataclass
class Statistics:
    """Sums over the `count` rows that reached one weight matrix, of the kinds that were asked for."""

    count: int = 0
    square_I: Tensor = field(default_factory=lambda: torch.empty(0))
    hessian_II: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    drift_II: Tensor | None = None

    @property
    def norm_I(self) -> Tensor:
        """Euclidean norm of each input over all rows."""
        return self.square_I.sqrt()

    def add_all(
        self, calls: list[Inputs], references: list[Inputs] | None, keep_BL: Tensor | None, needs: Collection[Need]
    ) -> None:
        """Add the rows of a block's calls of the layer; those of the reference stream must have come alike to be compared."""
        comparable = references is not None and [call.source.shape for call in references] == [
            call.source.shape for call in calls
        ]
        for number, call in enumerate(calls):
            others: Iterator[Tensor | None] = repeat(None)
            if comparable and references is not None:
                others = references[number].rows(keep_BL)
            for rows_NI, reference_NI in zip(call.rows(keep_BL), others, strict=False):
                self.add(rows_NI, reference_NI, needs)

    def add(self, rows_NI: Tensor, reference_NI: Tensor | None, needs: Collection[Need]) -> None:
        rows_NI = rows_NI.float()
        if self.count == 0:
            self._start(rows_NI, needs)
        self.count += len(rows_NI)
        if "norms" in needs:
            self.square_I += rows_NI.square().sum(0)
        if "hessian" in needs:
            self.hessian_II.addmm_(rows_NI.T, rows_NI)
        if "drift" in needs and reference_NI is not None:
            if self.drift_II is None:
                self.drift_II = torch.zeros_like(self.hessian_II)
            self.drift_II.addmm_(rows_NI.T, reference_NI.float() - rows_NI)

    def _start(self, rows_NI: Tensor, needs: Collection[Need]) -> None:
        inputs = rows_NI.shape[1]
        if "norms" in needs:
            self.square_I = rows_NI.new_zeros(inputs)
        if "hessian" in needs:
            self.hessian_II = rows_NI.new_zeros(inputs, inputs)


Visit = Callable[[Block, Mapping[str, Statistics]], None]
"""Called with a block and the statistics of its matrices, named `layer.weight`; changes the weights in place."""


def sequential(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    visit: Visit,
    *,
    layers: Mapping[str, nn.Module],
    needs: Collection[Need],
) -> None:
    """Visit every block that holds some of `layers`, in forward order, then what stands outside the blocks as one more.

    `batches` are keyword arguments of the model's forward. A matrix that no input reached has no statistics.
    """
    stack = blocks(model)
    owned = [_within(block, layers) for block in stack]
    outside = {name: layer for name, layer in layers.items() if not any(name in names for names in owned)}
    stops = [*zip(stack, owned, strict=True), *([(Block("", model), outside)] if outside else [])]
    if not needs:
        for block, _ in stops:
            visit(block, {})
        return
    with replaying(model, stack) as replay:
        replay.check(batches[0])
        streams = Streams(replay, batches, with_reference="drift" in needs)
        last = max((index for index, (_, watched) in enumerate(stops) if watched), default=-1)
        for index, (block, watched) in enumerate(stops):
            visit(block, streams.measure(index, watched, needs) if index <= last else {})
            if index < last:
                streams.advance(index)


class Streams:
    """The activations between two blocks: of the model as compressed so far, and of the original where asked for."""

    def __init__(self, replay: Replay, batches: Sequence[Mapping[str, Tensor]], *, with_reference: bool) -> None:
        self.replay, self.batches, self.with_reference = replay, batches, with_reference
        self.compressed: list[Output] = [None] * len(batches)
        self.reference: list[Output] = [None] * len(batches)

    def measure(self, index: int, watched: Mapping[str, nn.Module], needs: Collection[Need]) -> dict[str, Statistics]:
        """Statistics of block `index`, its weights still the original ones; the reference stream moves past it.

        Layers that are given the very same tensor (query, key, value) share one measurement.
        """
        sums: dict[str, Statistics] = {}
        leaders: dict[str, str] = {}
        for number, batch in enumerate(self.batches):
            references: dict[str, list[Inputs]] = {}
            if self.with_reference and index > 0:
                references, self.reference[number] = self._watch(index, number, watched, self.reference[number])
            seen, output = self._watch(index, number, watched, self.compressed[number])
            if self.with_reference and index == 0:
                # Nothing has been compressed before the first block: the two streams are one.
                self.reference[number] = output
            leaders = leaders or _leaders(seen)
            for name, calls in seen.items():
                if leaders.setdefault(name, name) == name:
                    sums.setdefault(name, Statistics()).add_all(
                        calls, references.get(name), batch.get("attention_mask"), needs
                    )
        return {name: sums[leader] for name, leader in leaders.items()}

    def advance(self, index: int) -> None:
        """The compressed stream moves past block `index`, now of compressed weights."""
        for number, batch in enumerate(self.batches):
            self.compressed[number] = self.replay.run(index, number, batch, self.compressed[number])

    def _watch(
        self, index: int, number: int, watched: Mapping[str, nn.Module], before: Output
    ) -> tuple[dict[str, list[Inputs]], Output]:
        seen: dict[str, list[Inputs]] = {}

        def record(name: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            for weight, inputs in _inputs_of(layer, given, args[1:], output).items():
                seen.setdefault(f"{name}.{weight}", []).append(inputs)

        hooks = [
            layer.register_forward_hook(partial(record, name), with_kwargs=True) for name, layer in watched.items()
        ]
        try:
            return seen, self.replay.run(index, number, self.batches[number], before)
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class Inputs:
    """What one call gave one weight matrix; `layer` is set where rows must be cut out of an image first."""

    source: Tensor
    layer: nn.Conv2d | None = None

    def same_as(self, other: Inputs) -> bool:
        return self.source is other.source and _geometry(self.layer) == _geometry(other.layer)

    def rows(self, keep_BL: Tensor | None) -> Iterator[Tensor]:
        """[N, I] in parts; positions that are padding left out."""
        if self.layer is not None:
            yield from _patches(self.source, self.layer)
        elif keep_BL is not None and self.source.shape[:-1] == keep_BL.shape:
            yield self.source[keep_BL.bool()]
        else:
            yield self.source.reshape(-1, self.source.shape[-1])


def _inputs_of(layer: nn.Module, given: Tensor, state: Sequence[Any], output: Any) -> dict[str, Inputs]:
    """The inputs of each matrix of a layer by its name in it."""
    if isinstance(layer, nn.Conv2d):
        return {"weight": Inputs(given, layer)}
    if not isinstance(layer, nn.LSTM):
        return {"weight": Inputs(given)}
    if not isinstance(given, Tensor) or layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
        # Torch keeps the states between stacked steps to itself: such matrices have no statistics.
        return {"weight_ih_l0": Inputs(given)} if isinstance(given, Tensor) else {}
    return {"weight_ih_l0": Inputs(given), "weight_hh_l0": Inputs(_earlier_states(layer, state, output[0]))}


def _earlier_states(lstm: nn.LSTM, state: Sequence[Any], states: Tensor) -> Tensor:
    """The state that each step was given: that of the step before, of the caller or zero for the first."""
    time = states.dim() - 2 if lstm.batch_first else 0
    first = torch.zeros_like(states.narrow(time, 0, 1))
    if state and state[0] is not None:
        first = state[0][0].movedim(0, time).reshape(first.shape)
    return torch.cat([first, states.narrow(time, 0, states.shape[time] - 1)], time)


def _patches(images_BCHW: Tensor, conv: nn.Conv2d) -> Iterator[Tensor]:
    """[N, in / groups * height * width] rows that the kernel sees, a few images at a time; groups add their rows up."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded_BCHW = F.pad(images_BCHW, conv._reversed_padding_repeated_twice, mode=mode)
    height, width = padded_BCHW.shape[2:]
    for part_BCHW in padded_BCHW.split(max(1, ROWS // (height * width))):
        columns_BKP = F.unfold(part_BCHW, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        yield columns_BKP.unflatten(1, (conv.groups, -1)).transpose(2, 3).flatten(0, 2)


def _geometry(conv: nn.Conv2d | None) -> tuple[Any, ...]:
    if conv is None:
        return ()
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)


def _leaders(seen: Mapping[str, list[Inputs]]) -> dict[str, str]:
    """For each matrix the first one that was given the very same tensors."""
    leaders: dict[str, str] = {}
    for name, calls in seen.items():
        leaders[name] = next((other for other in leaders if _alike(seen[other], calls)), name)
    return leaders


def _alike(one: list[Inputs], other: list[Inputs]) -> bool:
    return len(one) == len(other) and all(mine.same_as(theirs) for mine, theirs in zip(one, other, strict=True))


def _within(block: Block, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    inside = {id(module) for module in block.module.modules()}
    return {name: layer for name, layer in layers.items() if id(layer) in inside}
