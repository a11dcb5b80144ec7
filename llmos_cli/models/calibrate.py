"""Calibration, block by block: what each layer's inputs look like once the layers before it have been compressed.

For each block in forward order, and within it for each group of layers that are given the same tensor (query, key and value; then
the output projection; ...): measure their inputs in the compressed stream, and, for methods that make up for drift, in the
reference stream of the original weights; let the visitor change their weights; go on. So every layer is fitted to what it will
really be fed. Sums are in fp32 over batches in order: the same inputs give the same bits.

Shapes: N rows of inputs (tokens, patches, steps), I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmos_cli.models.blocks import Block, blocks, weights
from llmos_cli.models.inputs import Inputs, inputs_of, leaders
from llmos_cli.models.replay import Output, Replay, replaying

Need = Literal["norms", "hessian", "drift"]
"""What a method asks for: the norm of each input, X^T X, and X^T (X_ref - X)."""

Batches = Sequence[Mapping[str, Tensor]]
"""Keyword arguments of the model's forward."""


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


Visit = Callable[[Mapping[str, Statistics]], None]
"""Called with the matrices (`layer.weight`) to change now, in place, and the statistics of each; those of a matrix that no input
reached, or of a method that needs none, are empty."""

Advance = Callable[[int, int], None]
"""Told how many blocks of how many are done."""


def sequential(
    model: nn.Module,
    batches: Batches,
    visit: Visit,
    *,
    layers: Mapping[str, nn.Module],
    needs: Collection[Need],
    advance: Advance = lambda done, total: None,
) -> None:
    """Visit every matrix of `layers` once: block by block in forward order, then what stands outside the blocks."""
    stack = blocks(model)
    stops = [_within(block, layers) for block in stack]
    outside = {name: layer for name, layer in layers.items() if not any(name in inside for inside in stops)}
    stops += [outside] if outside else []
    if not needs:
        for done, watched in enumerate(stops, 1):
            visit({name: Statistics() for name in _names(watched)})
            advance(done, len(stops))
        return
    with replaying(model, stack) as replay:
        replay.check(batches[0])
        streams = Streams(replay, batches, needs)
        last = max((index for index, watched in enumerate(stops) if watched), default=-1)
        for index, watched in enumerate(stops[: last + 1]):
            unreached = set(_names(watched))
            for statistics in streams.stages(index, watched):
                visit(statistics)
                unreached -= set(statistics)
            visit({name: Statistics() for name in sorted(unreached)})
            if index < last:
                streams.advance(index)
            advance(index + 1, last + 1)


class Streams:
    """The activations between two blocks: of the model as compressed so far, and of the original where drift is asked for."""

    def __init__(self, replay: Replay, batches: Batches, needs: Collection[Need]) -> None:
        self.replay, self.batches, self.needs = replay, batches, needs
        self.compressed: list[Output] = [None] * len(batches)
        self.reference: list[Output] = [None] * len(batches)

    def stages(self, index: int, watched: Mapping[str, nn.Module]) -> Iterator[dict[str, Statistics]]:
        """Block `index`'s matrices in groups of one input, in the order of their running; each group is measured when the ones
        before it have been changed."""
        if not watched:
            if "drift" in self.needs:
                self._references(index, {})
            return
        originals = self._references(index, watched)
        first: dict[str, list[Inputs]] = {}
        for seen in originals:
            first = {**seen, **first}
        follows = leaders(first)
        for leader in dict.fromkeys(follows.values()):
            measured = self._measure(index, leader, watched, originals)
            yield {name: measured for name, followed in follows.items() if followed == leader}

    def advance(self, index: int) -> None:
        """The compressed stream moves past block `index`, now of compressed weights."""
        for number, batch in enumerate(self.batches):
            self.compressed[number] = self.replay.run(index, number, batch, self.compressed[number])

    def _references(self, index: int, watched: Mapping[str, nn.Module]) -> list[dict[str, list[Inputs]]]:
        """What the original block gives its layers in the reference stream, which moves past it; where nothing asks for
        drift, what the first batch of the compressed stream gives them, to know their order."""
        if "drift" not in self.needs:
            seen, _ = self._watch(index, 0, watched, self.compressed[0])
            return [seen]
        found = []
        for number in range(len(self.batches)):
            seen, self.reference[number] = self._watch(index, number, watched, self.reference[number])
            found.append(seen)
        return found

    def _measure(
        self, index: int, name: str, watched: Mapping[str, nn.Module], originals: Sequence[Mapping[str, list[Inputs]]]
    ) -> Statistics:
        layer_name = name.rpartition(".")[0]
        total = Statistics()
        for number, batch in enumerate(self.batches):
            original = originals[number].get(name, []) if "drift" in self.needs else None
            calls = len(originals[0].get(name, [])) if original is None else len(original)
            only = {layer_name: watched[layer_name]}
            seen, _ = self._watch(index, number, only, self.compressed[number], until=calls)
            total.add_all(seen.get(name, []), original, batch.get("attention_mask"), self.needs)
        return total

    def _watch(
        self, index: int, number: int, watched: Mapping[str, nn.Module], before: Output, until: int = 0
    ) -> tuple[dict[str, list[Inputs]], Output]:
        """What the block's layers are given, and its output; None for that where the `until`-th call of a layer was enough."""
        seen: dict[str, list[Inputs]] = {}

        def record(name: str, layer: nn.Module) -> Callable[..., None]:
            def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                given = args[0] if args else next(iter(kwargs.values()))
                for weight, inputs in inputs_of(layer, given, args[1:], output).items():
                    seen.setdefault(f"{name}.{weight}", []).append(inputs)
                    if until and len(seen[f"{name}.{weight}"]) == until:
                        enough.add(weight)
                if enough and len(enough) == len(seen):
                    raise _Enough

            return hook

        enough: set[str] = set()
        hooks = [layer.register_forward_hook(record(name, layer), with_kwargs=True) for name, layer in watched.items()]
        try:
            return seen, self.replay.run(index, number, self.batches[number], before)
        except _Enough:
            return seen, None
        finally:
            for hook in hooks:
                hook.remove()


class _Enough(Exception):
    """All that was looked for has been seen: the rest of the forward pass need not run."""


def _names(watched: Mapping[str, nn.Module]) -> list[str]:
    return [f"{name}.{weight}" for name, layer in watched.items() for weight in weights(layer)]


def _within(block: Block, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    inside = {id(module) for module in block.module.modules()}
    return {name: layer for name, layer in layers.items() if id(layer) in inside}
