"""Compiled decoding: the same tokens, no shape compiled in the middle of traffic, and eager until it is ready."""

from __future__ import annotations

import pytest

from llmos_cli.serve.compiled import CompiledDecoder, at_least, doublings
from llmos_cli.serve.decoder import LlamaDecoder
from llmos_cli.serve.engine import Engine, Request
from tests.serve.conftest import tiny_llama
from tests.serve.test_engine import decode, greedy, prompts


def decoder(slots: int, context: int) -> CompiledDecoder:
    return CompiledDecoder(LlamaDecoder(tiny_llama(), slots=slots, context=context))


@pytest.mark.parametrize(
    ("least", "most", "sizes"),
    [(1, 16, [1, 2, 4, 8, 16]), (1, 1, [1]), (1, 6, [1, 2, 4, 6]), (128, 300, [128, 256, 300])],
)
def test_sizes_double_up_to_the_most(least: int, most: int, sizes: list[int]):
    assert doublings(least, most) == sizes
    assert all(at_least(value, sizes) >= value for value in range(1, most + 1))


def test_it_serves_eagerly_until_a_graph_is_ready():
    model = tiny_llama()
    requests = [Request(index, prompt, 8) for index, prompt in enumerate(prompts((3, 40, 1)))]
    got = decode(Engine(decoder(4, 128)), requests)
    assert got == {request.id: greedy(model, request.tokens, 8) for request in requests}


@pytest.mark.slow
def test_compiled_decoding_is_transformers_greedy_and_compiles_nothing_more():
    from torch._dynamo.utils import counters

    from llmos_cli.serve.compiled import prepare

    prepare()
    compiled = decoder(2, 96)
    compiled.warm()
    assert set(compiled.graphs) == {(1, 96), (2, 96)}
    assert list(compiled.news()) == ["compiled 2 of 2 shapes"]
    before = counters["stats"]["unique_graphs"]
    requests = [Request(index, prompt, 20) for index, prompt in enumerate(prompts((3, 40, 1, 17)))]
    got = decode(Engine(compiled), requests)
    assert got == {request.id: greedy(tiny_llama(), request.tokens, 20) for request in requests}
    assert counters["stats"]["unique_graphs"] == before
