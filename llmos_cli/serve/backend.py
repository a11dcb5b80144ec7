"""Which decoder serves a model: our own for Llama-like ones, transformers' forward for the rest; and compiling it meanwhile.

LLMOS_COMPILE=off in the environment turns off compiling that was not asked for by `full`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llmos_cli import device
from llmos_cli.core.view import size
from llmos_cli.errors import LlmosError
from llmos_cli.models.kernels import coded
from llmos_cli.serve import cache
from llmos_cli.serve.decoder import Decoder, LlamaDecoder, obstacle
from llmos_cli.serve.fallback import RecomputingDecoder, SlotDecoder, agrees, takes_slots

UNBOUNDED = 2048
"""Context of models that have no limit of their own (recurrent ones)."""


def silent() -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Built:
    """`news` gives sentences about what happened since it was last asked (compiled shapes); `layers` says how layers that hold
    codes are multiplied."""

    decoder: Decoder
    name: str
    note: str
    news: Callable[[], Iterable[str]] = silent
    layers: Sequence[str] = ()


def build(model: Any, *, slots: int, context: int | None, warm: str, kv_cache: str = "keep") -> Built:
    context = context_of(model, context)
    reason = obstacle(model, context)
    if not reason:
        return own(model, slots, context, warm, kv_cache)
    if kv_cache != "keep":
        raise LlmosError(
            f"a cache in {kv_cache} needs llmos's own decoder, which does not decode this model: {reason}",
            hint="leave deploy.kv_cache out",
        )
    if takes_slots(model, context):
        slotted = SlotDecoder(model, slots=slots, context=context)
        if agrees(slotted, model):
            return Built(slotted, "transformers", f"decoding through transformers' forward, cached: {reason}")
    recomputing = RecomputingDecoder(model, slots=slots, context=context)
    note = f"decoding through transformers' forward, every token from the start of its text: {reason}"
    return Built(recomputing, "transformers-uncached", note)


def context_of(model: Any, asked: int | None) -> int:
    """Positions to serve: those asked for, at most the model's own."""
    own = next(
        (
            getattr(model.config, key)
            for key in ("max_position_embeddings", "n_positions")
            if hasattr(model.config, key)
        ),
        None,
    )
    if own is None:
        return asked or UNBOUNDED
    if asked is not None and asked > own:
        raise LlmosError(
            f"deploy.context is {asked}, but the model has {own} positions", hint=f"use at most {own}, or leave it out"
        )
    return asked or int(own)


def own(model: Any, slots: int, context: int, warm: str, kv_cache: str) -> Built:
    needed = cache.bytes_of(model.config, slots=slots, context=context, dtype=model.dtype, kind=kv_cache)
    free = device.memory_free(model.device)
    if needed > free:
        raise LlmosError(
            f"the cache of {slots} slots of {context} positions needs {size(needed)}, and {size(free)} are free",
            hint="lower deploy.slots or deploy.context, or set deploy.kv_cache=int8",
        )
    decoder = LlamaDecoder(model, slots=slots, context=context, kv_cache=kv_cache)
    note = f"decoding {slots} streams of up to {context} tokens in {str(model.dtype).removeprefix('torch.')} on {model.device}, cache {size(needed)}{'' if kv_cache == 'keep' else f' in {kv_cache}'}"
    layers = coded.summary(decoder.products)
    if warm == "off" or (warm == "background" and os.environ.get("LLMOS_COMPILE") == "off"):
        return Built(decoder, "own", note, layers=layers)
    from llmos_cli.models.compiling import explained, possible
    from llmos_cli.serve import compiled

    if not possible():
        if warm == "full":
            raise explained("there is no C++ compiler", instead="deploy.warm=off")
        return Built(decoder, "own", f"{note}, not compiling: there is no C++ compiler", layers=layers)
    compiling = compiled.CompiledDecoder(decoder)
    if warm == "full":
        compiled.prepare()
        compiling.warm()
    else:
        compiled.in_background(compiling)
    return Built(compiling, "own", f"{note}, compiling", compiling.news, layers)
