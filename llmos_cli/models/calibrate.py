"""Calibration, block by block: what each layer's inputs look like once the layers before it have been compressed.

For each block in forward order, and within it for each group of layers that are given the same tensor (query, key and value; then
the output projection; ...): measure their inputs in the compressed stream, and, for methods that make up for drift, in the
reference stream of the original weights; let the visitor change their weights; go on. So every layer is fitted to what it will
really be fed. What has its final weights computes once (`memo`). Sums are in fp32 over batches in order: the same inputs give the
same bits. A method that works on a block as a whole is given its `Turn`: before the groups are measured, and again when all of them
were changed.

Shapes: N rows of inputs (tokens, patches, steps), I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from llmos_cli.models.activations import Spill, Store
from llmos_cli.models.blocks import Block, blocks
from llmos_cli.models.inputs import Inputs, leaders
from llmos_cli.models.memo import Memo, ending
from llmos_cli.models.recording import Enough, Layout, names_of, recorded
from llmos_cli.models.replay import Output, Replay, replaying
from llmos_cli.models.statistics import Need, Statistics

Batches = Sequence[Mapping[str, Tensor]]
"""Keyword arguments of the model's forward."""

Visit = Callable[[Mapping[str, Statistics]], None]
"""Called with the matrices (`layer.weight`) to change now, in place, and the statistics of each; those of a matrix that no input
reached, or of a method that needs none, are empty."""

Advance = Callable[[int, int], None]
"""Told how many blocks of how many are done."""


@dataclass(frozen=True)
class Hooks:
    """What is done to a block as a whole. `before` must leave what the block computes as it is (its matrices are measured
    afterwards); `after` finds all of its matrices changed, and nothing is measured of it any more but its output."""

    before: Callable[[Turn], None] | None = None
    after: Callable[[Turn], None] | None = None

    def __bool__(self) -> bool:
        return bool(self.before or self.after)


NO_HOOKS = Hooks()


class Keeper:
    """Where a block is before and after its turn. This one has them all in memory all along, and begins with the first."""

    finished = 0
    """Blocks that were changed by an earlier process: they are run as they became, not visited again."""

    def held(self, index: int) -> AbstractContextManager[None]:
        """Within it, block `index` is in memory as the original has it. What stands after the last block counts as one more."""
        return nullcontext()

    def settle(self, names: Iterable[str]) -> None:
        """These matrices, of a block that is held, were changed: from now on they are what the result will have."""

    def keep(self, index: int) -> None:
        """All of the block's matrices were changed; it is still held."""

    def restore(self, index: int) -> None:
        """Make the block, which is held, what it was when it was kept."""


def sequential(
    model: nn.Module,
    batches: Batches,
    visit: Visit,
    *,
    layers: Mapping[str, nn.Module],
    needs: Collection[Need],
    hooks: Hooks = NO_HOOKS,
    keeper: Keeper | None = None,
    spill: Spill | None = None,
    dtype: torch.dtype = torch.float32,
    advance: Advance = lambda done, total: None,
) -> None:
    """Visit every matrix of `layers` once: block by block in forward order, then what stands outside the blocks.

    `hooks` are called for each block that holds some of `layers`; they need calibration, and so do not run without `needs`.
    `keeper`: brings blocks into memory and keeps what became of them; `spill`: where activations go that are too many for memory;
    `dtype`: of the products in the forward passes and statistics. What hooks do is finer than bf16: with hooks all are in fp32.
    """
    stack, keeper = blocks(model), keeper or Keeper()
    stops = [_within(block, layers) for block in stack]
    outside = {name: layer for name, layer in layers.items() if not any(name in inside for inside in stops)}
    stops += [outside] if outside else []
    last = max((index for index, watched in enumerate(stops) if watched), default=-1)
    ours = stops[: last + 1]
    if not needs:
        for index, watched in enumerate(ours):
            with keeper.held(index):
                _change(keeper, index, partial(visit, {name: Statistics() for name in names_of(watched)}))
            advance(index + 1, len(ours))
        return
    with replaying(model, stack, torch.float32 if hooks else dtype) as replay:
        seen = _looked_at(replay, batches[0], stops, keeper)
        streams = Streams(replay, batches, needs, hooks, spill or Spill(), seen)
        for index, watched in enumerate(ours):
            with keeper.held(index):
                if index < keeper.finished:
                    streams.pass_by(index)
                _change(keeper, index, partial(_visit, streams, index, watched, visit, keeper))
                if index < last:
                    streams.advance(index)
            advance(index + 1, len(ours))


def _change(keeper: Keeper, index: int, change: Callable[[], None]) -> None:
    """The block, which is held, becomes what an earlier process made of it, or is changed now."""
    if index < keeper.finished:
        keeper.restore(index)
    else:
        change()
        keeper.keep(index)


def _looked_at(
    replay: Replay, batch: Mapping[str, Tensor], stops: Sequence[Mapping[str, nn.Module]], keeper: Keeper
) -> dict[int, Layout]:
    """What the layers of each block share, as the pass over one sample shows by which the blocks' order is checked."""
    found: dict[int, Layout] = {}

    @contextmanager
    def held(index: int) -> Iterator[None]:
        block = replay.stack[index]
        with keeper.held(index), recorded(stops[index], 0) as seen, ending(block.module, block.name) as endings:
            yield
        found[index] = Layout(endings=endings)
        found[index].note(seen)

    replay.check(batch, held)
    return found


def _visit(streams: Streams, index: int, watched: Mapping[str, nn.Module], visit: Visit, keeper: Keeper) -> None:
    unreached = set(names_of(watched))
    for statistics in streams.stages(index, watched):
        visit(statistics)
        keeper.settle(statistics)
        unreached -= set(statistics)
        del statistics
    visit({name: Statistics() for name in sorted(unreached)})


class Streams:
    """The activations between two blocks: of the model as compressed so far, and of the original where drift or a hook asks
    for it."""

    def __init__(
        self,
        replay: Replay,
        batches: Batches,
        needs: Collection[Need],
        hooks: Hooks = NO_HOOKS,
        spill: Spill | None = None,
        layouts: Mapping[int, Layout] = MappingProxyType({}),
    ) -> None:
        self.layouts = layouts
        self.replay, self.batches, self.needs, self.hooks = replay, batches, needs, hooks
        self.spill = spill or Spill()
        self.compressed, self.reference = self.spill.store(), self.spill.store()
        self.referred = range(len(batches)) if "drift" in needs or hooks else range(0)
        self.memo: Memo | None = None

    def stages(self, index: int, watched: Mapping[str, nn.Module]) -> Iterator[dict[str, Statistics]]:
        """Block `index`'s matrices in groups of one input, in the order of their running; each group is measured when the ones
        before it have been changed."""
        hooks = self.hooks if watched and index < len(self.replay.stack) else NO_HOOKS
        turn = Turn(self, index, watched)
        groups = self._references(index, watched, hooks, turn)
        if watched and index < len(self.replay.stack):
            once, endings = groups.layout.once(watched), self.layouts.get(index, Layout()).endings
            self.memo = Memo(turn.module, turn.name, watched, once, self.spill, endings)
        for leader in groups.layout.calls:
            # Nothing here remembers a group's sums: they are gone before the next one's are begun.
            yield dict.fromkeys(
                (name for name, followed in groups.layout.follows.items() if followed == leader),
                self._measure(index, leader, watched, groups),
            )
            if self.memo:
                self.memo.settle(name for name, followed in groups.layout.follows.items() if followed == leader)
        groups.originals.clear()
        if hooks.after:
            self._forget()
            hooks.after(turn)

    def pass_by(self, index: int) -> None:
        """The reference stream moves past block `index`, of the original's weights."""
        for number in self.referred:
            _, self.reference[number] = self.watch(index, number, {}, self.reference[number])

    def advance(self, index: int) -> None:
        """The compressed stream moves past block `index`, now of compressed weights."""
        for number, batch in enumerate(self.batches):
            with self._spared(number, learning=False):
                passed = self.replay.run(index, number, batch, self.compressed[number])
            if self.memo:  # before the answer is kept, for they share the room that there is
                self.memo.forget(number)
            self.compressed[number] = passed
        self._forget()

    def _spared(self, number: int, *, learning: bool) -> AbstractContextManager[None]:
        return self.memo.running(number, learning=learning) if self.memo else nullcontext()

    def _forget(self) -> None:
        if self.memo:
            self.memo.forget()
        self.memo = None

    def _references(self, index: int, watched: Mapping[str, nn.Module], hooks: Hooks, turn: Turn) -> Groups:
        """The block's groups; where drift is asked for, what the original gives each in the reference stream. That stream moves
        past the block."""
        groups, before = Groups(self.spill.store(), keep="drift" in self.needs), self.reference
        if hooks.before:
            self.reference = self.spill.store()
        for number in self.referred:
            inside = {} if hooks.before else watched
            seen, self.reference[number] = self.watch(index, number, inside, before[number])
            groups.note(number, seen)
        if hooks.before:
            hooks.before(turn)
            # The block gives its layers other inputs now, for the same outputs: those that it gave before do not compare.
            for number in self.referred if "drift" in self.needs else ():
                groups.note(number, self.watch(index, number, watched, before[number])[0])
            before.clear()
        if watched and not groups.layout.follows:
            known = self.layouts.get(index, Layout())
            if set(names_of(watched)) <= set(known.follows):
                groups.layout = known
            else:  # one sample did not reach every expert
                for number in range(len(self.batches)):
                    groups.note(number, self.watch(index, number, watched, self.compressed[number])[0])
                    if set(names_of(watched)) <= set(groups.layout.follows):
                        break
        return groups

    def _measure(self, index: int, leader: str, watched: Mapping[str, nn.Module], groups: Groups) -> Statistics:
        layer_name = leader.rpartition(".")[0]
        only = {layer_name: watched[layer_name]}
        total = Statistics(self.replay.dtype)
        for number, batch in enumerate(self.batches):
            original = groups.original(number, leader) if "drift" in self.needs else None
            calls = groups.layout.calls[leader] if original is None else len(original)
            with self._spared(number, learning=True):
                seen, _ = self.watch(index, number, only, self.compressed[number], until=calls)
            total.add_all(seen.get(leader, []), original, batch.get("attention_mask"), self.needs)
        return total

    def watch(
        self, index: int, number: int, watched: Mapping[str, nn.Module], before: Output, until: int = 0
    ) -> tuple[dict[str, list[Inputs]], Output]:
        """What the block's layers are given, and its output; None for that where the `until`-th call of a layer was enough."""
        with recorded(watched, until) as seen:
            try:
                return seen, self.replay.run(index, number, self.batches[number], before)
            except Enough:
                return seen, None


@dataclass
class Groups:
    """A block's `layout`, and in `originals` what the reference stream gives each group, where that is to `keep`, by batch."""

    originals: Store
    keep: bool
    layout: Layout = field(default_factory=Layout)

    def note(self, number: int, seen: Mapping[str, list[Inputs]]) -> None:
        self.layout.note(seen)
        for leader in self.layout.calls if self.keep else ():
            self.originals[number, leader] = [(call.source, call.layer) for call in seen.get(leader, [])]

    def original(self, number: int, leader: str) -> list[Inputs]:
        return [Inputs(source, layer) for source, layer in self.originals[number, leader] or []]


@dataclass(frozen=True)
class Turn:
    """One block at its turn, for what works on it as a whole: its inputs in the compressed stream, the original's outputs.

    Batches are numbered; a batch's activations are made when they are asked for, so that one of them is in memory, not all.
    """

    streams: Streams
    index: int
    layers: Mapping[str, nn.Module]
    """The compressible layers that were chosen, by their names in the model."""

    @property
    def name(self) -> str:
        """The block's name in the model; "" where the whole model is one block."""
        return self.streams.replay.stack[self.index].name

    @property
    def module(self) -> nn.Module:
        return self.streams.replay.stack[self.index].module

    @property
    def batches(self) -> int:
        return len(self.streams.batches)

    def mask(self, number: int) -> Tensor | None:
        """[B, L], 0 at padding; None where no sample of the batch has any."""
        return self.streams.batches[number].get("attention_mask")

    def given(self, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All that the model hands the block in the compressed stream: hidden states, masks, rotary tables."""
        streams = self.streams
        with torch.no_grad():
            return streams.replay.given(self.index, number, streams.batches[number], streams.compressed[number])

    def target(self, number: int) -> Tensor:
        """What the original block answered in the reference stream: the first tensor of its output."""
        return leading(self.streams.reference[number])

    def answer(self, number: int, weights: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """What the block, as it is now, answers in the compressed stream, some weights (by their names in the model, in their
        own shapes) replaced: gradients reach those where the caller has enabled them, and nothing else."""
        args, kwargs = self.given(number)
        return answered(self.module, self.name, args, kwargs, weights)

    def measure(self, needs: Collection[Need]) -> dict[str, Statistics]:
        """`norms` or `hessian` of every matrix's inputs, of the block as it is now; matrices that are fed alike share theirs."""
        found: dict[str, Statistics] = {}
        for number in range(self.batches):
            seen, _ = self.streams.watch(self.index, number, self.layers, self.streams.compressed[number])
            for name, leader in leaders(seen).items():
                if name == leader:
                    total = found.setdefault(name, Statistics())
                    total.add_all(seen[name], None, self.mask(number), needs)
                else:
                    found[name] = found[leader]
        return found


def answered(
    block: nn.Module, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Tensor:
    """The first tensor of `block`'s output with `weights` (full names; the block's is `name`) in place of its own."""
    own = {key: value.detach() for key, value in block.named_parameters()}
    replaced = {key.removeprefix(f"{name}.") if name else key: value for key, value in weights.items()}
    return leading(functional_call(block, own | replaced, args, dict(kwargs)))


def leading(output: Output) -> Tensor:
    """The first tensor of a nest: of a block's outputs, the hidden states."""
    return next(value for value in tree_leaves(output) if isinstance(value, Tensor))


def _within(block: Block, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    inside = {id(module) for module in block.module.modules()}
    return {name: layer for name, layer in layers.items() if id(layer) in inside}
