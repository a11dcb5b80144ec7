"""Serving on an accelerator: what the engine makes on the CPU goes where the model is, and the tokens are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from llmos_cli import device
from llmos_cli.serve.compiled import CompiledDecoder, run
from llmos_cli.serve.decoder import LlamaDecoder
from llmos_cli.serve.engine import Engine, Request
from llmos_cli.serve.fallback import RecomputingDecoder, SlotDecoder
from llmos_cli.serve.sampling import Sampling
from tests.serve.conftest import tiny_llama
from tests.serve.test_engine import decode, prompts

DECODERS: dict[str, Callable[..., Any]] = {
    "own": LlamaDecoder,
    "int8 cache": partial(LlamaDecoder, kv_cache="int8"),
    "slots": SlotDecoder,
    "recomputing": RecomputingDecoder,
    "compiled": lambda model, **shape: CompiledDecoder(LlamaDecoder(model, **shape)),
}


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_computes_where_its_model_is(name: str, every: bool):
    """The meta device stands in for any other: torch refuses to mix it with the CPU."""
    decoder = DECODERS[name](tiny_llama().to("meta"), slots=2, context=32)
    tokens_BL, positions_BL = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[0, 1], [0, -1]])
    logits = decoder.forward(tokens_BL, positions_BL, 0, every=every)
    assert logits.device.type == "meta"
    assert decoder.forward(tokens_BL[:, :1], positions_BL[:, :1] + 2, 0, every=False).device.type == "meta"
    decoder.move(1, 0)


def test_a_graph_is_run_where_its_cache_is():
    decoder = CompiledDecoder(LlamaDecoder(tiny_llama().to("meta"), slots=2, context=32))
    caches = [decoder.eager.cache() for _ in decoder.eager.layers]
    made = run(decoder.step(32), torch.tensor([[1]]), torch.tensor([[0]]), caches)
    assert made.device.type == "meta"


def test_drawing_needs_fp64_which_metal_has_not():
    assert device.has_fp64(torch.device("cpu")) and device.has_fp64(torch.device("cuda"))
    assert not device.has_fp64(torch.device("mps"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["own", "slots", "recomputing"])
def test_the_same_tokens_on_an_accelerator(name: str):
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3, presence_penalty=0.1, logprobs=2)
    requests = [Request(index, prompt, 8, echo=True) for index, prompt in enumerate(prompts((3, 40, 1)))]
    requests += [Request(index + 10, prompt, 8, sampling) for index, prompt in enumerate(prompts((5, 2)))]
    here, there = (
        decode(Engine(DECODERS[name](device.move(tiny_llama(), on), slots=4, context=128)), requests)
        for on in (torch.device("cpu"), device.pick())
    )
    assert here == there
