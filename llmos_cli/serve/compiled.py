"""Compiled decoding: one graph for each number of rows and each window, made in a thread of its own while the eager decoder serves.

Shapes are few and static: rows in powers of two, windows in doublings of 128. A shape that is not compiled yet is decoded
eagerly, and a graph takes over only after its logits were compared with the eager decoder's.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType

import torch
from torch import Tensor

from llmos_cli import device
from llmos_cli.errors import LlmosError
from llmos_cli.models.compiling import FAILURES, explained
from llmos_cli.serve.cache import KeysValues
from llmos_cli.serve.decoder import WINDOW, LlamaDecoder, last_real

NICENESS = 10
"""Of the compiling thread: what is being served comes first."""

TOLERANCE = {"keep": 1e-3, "int8": 1e-2}
"""Of a graph's logits, relative to the largest eager one; in fp32 they differ by less than a hundredth of that, but where keys and
values are rounded one of them may fall to the next code."""

Shape = tuple[int, int]
"""Rows and window."""
Graph = Callable[[Tensor, Tensor, list[KeysValues]], Tensor]


class CompiledDecoder:
    """A decoder that hands single tokens to graphs as they become ready, and everything else to the eager one."""

    def __init__(self, eager: LlamaDecoder) -> None:
        self.eager = eager
        self.slots, self.context, self.vocabulary = eager.slots, eager.context, eager.vocabulary
        self.rows = doublings(1, eager.slots)
        self.windows = doublings(min(WINDOW, eager.context), eager.context)
        self.graphs: dict[Shape, Graph] = {}
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def forward(self, tokens_BL: Tensor, positions_BL: Tensor, first: int, *, every: bool) -> Tensor:
        batch, length = tokens_BL.shape
        if length == 1 and first == 0 and not every:
            shape = (at_least(batch, self.rows), at_least(int(positions_BL.max()) + 1, self.windows))
            if graph := self.graphs.get(shape):
                tokens, positions = padded(tokens_BL, shape[0], 0), padded(positions_BL, shape[0], -1)
                return run(graph, tokens, positions, self.eager.caches)[:batch]
        return self.eager.forward(tokens_BL, positions_BL, first, every=every)

    def move(self, source: int, target: int) -> None:
        self.eager.move(source, target)

    def news(self) -> Iterator[str]:
        while not self.told.empty():
            yield self.told.get()

    def warm(self) -> None:
        """Compile every shape, the shortest windows first: every stream begins there. LlmosError where torch cannot."""
        scratch = [self.eager.cache() for _ in self.eager.layers]
        try:
            for window in self.windows:
                for rows in dict.fromkeys([1, self.rows[-1], *self.rows]):
                    self.compile((rows, window), scratch)
        except FAILURES as problem:
            raise explained(problem, instead="deploy.warm=off") from problem
        self.told.put(f"compiled {len(self.graphs)} of {len(self.rows) * len(self.windows)} shapes")

    def compile(self, shape: Shape, scratch: list[KeysValues]) -> None:
        """Compile one shape over a cache that nothing is served from, and keep it if it agrees with the eager decoder."""
        rows, window = shape
        graph = torch.compile(own_code(self.step(window)), dynamic=False, fullgraph=True)
        tokens_B1 = torch.arange(rows)[:, None] % self.vocabulary
        positions_B1 = torch.arange(rows)[:, None] % window
        compiled_BV = run(graph, tokens_B1, positions_B1, scratch)
        eager_BV = run(self.step(window), tokens_B1, positions_B1, scratch)
        if (compiled_BV - eager_BV).abs().max() <= TOLERANCE[self.eager.kv_cache] * eager_BV.abs().max():
            self.graphs[shape] = graph
        else:
            self.told.put(f"the graph of {rows} rows and a window of {window} differs from eager decoding: not used")

    def step(self, window: int) -> Graph:
        eager = self.eager

        def step(tokens_B1: Tensor, positions_B1: Tensor, caches: list[KeysValues]) -> Tensor:
            hidden_B1E = eager.hidden(tokens_B1, positions_B1, caches, 0, window)
            return eager.head(last_real(hidden_B1E, positions_B1)).float()

        return step


def run(graph: Graph, tokens_B1: Tensor, positions_B1: Tensor, caches: list[KeysValues]) -> Tensor:
    """On the cache's device, in inference mode, with inputs made outside of it: tensors made inside are another kind, and dynamo would compile again."""
    on = caches[0].keys_SHTD.device
    tokens_B1, positions_B1 = device.move(tokens_B1, on), device.move(positions_B1, on)
    with torch.inference_mode():
        return graph(tokens_B1, positions_B1, caches)


def in_background(decoder: CompiledDecoder) -> None:
    """Warm in a thread that neither delays requests nor keeps the process alive."""

    # As many threads as where the graphs will run: dynamo would compile again there for another number.
    threads = torch.get_num_threads()

    def work() -> None:
        torch.set_num_threads(threads)
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            decoder.warm()
        except LlmosError as error:
            decoder.told.put(f"{error.message}; decoding goes on without")

    prepare()
    threading.Thread(target=work, name="compile", daemon=True).start()


def prepare() -> None:
    """No pool of compiling processes: they would start with copies of this one, cache and all."""
    device.keep_compiled()
    from torch._inductor import config

    config.compile_threads = 1


def own_code(function: Graph) -> Graph:
    """The same function with a code object of its own: dynamo keeps graphs by code object, and looks through all of them at
    each call."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )


def doublings(least: int, most: int) -> list[int]:
    """`least`, twice that... up to `most`, which is always the last."""
    sizes = []
    while least < most:
        sizes.append(least)
        least *= 2
    return [*sizes, most]


def at_least(value: int, sizes: Iterable[int]) -> int:
    return next(size for size in sizes if size >= value)


def padded(values_B1: Tensor, rows: int, filler: int) -> Tensor:
    missing = rows - values_B1.shape[0]
    return values_B1 if missing == 0 else torch.cat([values_B1, values_B1.new_full((missing, 1), filler)])
