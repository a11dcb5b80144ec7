"""Which blocks are missed least: one after another, the block goes without which the model's answers change least, measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from llmos_cli.errors import UsageError
from llmos_cli.models.blocks import blocks
from llmos_cli.operations.compression.probe import few, mean_divergence, said
from llmos_cli.tasks.base import Batch


def least_missed(
    model: PreTrainedModel, batches: Sequence[Batch], spared: Collection[str] = ()
) -> Iterator[tuple[str, float]]:
    """Blocks by name, the first to go first, with the KL (nats per position) to the whole model once it and those before it are gone.

    A block is missed the more, the more others are gone: so what was measured earlier is a lower bound, and only the block that
    looks best is measured again, until it still does.
    """
    looked = few(batches)
    whole = [said(model, batch) for batch in looked]
    names = [block.name for block in blocks(model) if block.name not in spared]
    gone: list[str] = []

    def without(name: str) -> float:
        with ExitStack() as hooks:
            for block in blocks(model):
                if block.name in (*gone, name):
                    hooks.callback(block.module.register_forward_hook(_passed_by(block.name), with_kwargs=True).remove)
            return mean_divergence(whole, model, looked)

    known = {name: without(name) for name in names}
    fresh = set(known)
    while known:
        name = min(known, key=lambda name: known[name])
        if name not in fresh:
            known[name] = without(name)
            fresh.add(name)
            continue
        gone.append(name)
        yield name, known.pop(name)
        fresh.clear()


def _passed_by(name: str) -> Callable[..., Any]:
    """A hook that gives what the block was given."""

    def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        before = args[0] if args else next(iter(kwargs.values()))
        after = output[0] if isinstance(output, tuple) else output
        if not isinstance(after, Tensor) or before.shape != after.shape:
            raise UsageError(
                f"{name} does not give hidden states of the shape it is given, so it cannot be left out",
                hint="`--method width` makes blocks narrower instead",
            )
        return (before, *output[1:]) if isinstance(output, tuple) else before

    return hook
