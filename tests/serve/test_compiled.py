"""Compiled decoding: the same tokens, no shape compiled in the middle of traffic, and eager until it is ready."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from llmos_cli.errors import LlmosError
from llmos_cli.serve import backend
from llmos_cli.serve.compiled import CompiledDecoder, at_least, doublings, in_background
from llmos_cli.serve.decoder import LlamaDecoder
from llmos_cli.serve.engine import Engine, Request
from tests.serve.conftest import eventually, tiny_llama
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


def test_without_a_compiler_full_is_refused_and_background_goes_on_eagerly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLMOS_COMPILE", raising=False)
    with pytest.raises(LlmosError, match=r"torch\.compile failed: there is no C") as failed:
        backend.build(tiny_llama(), slots=2, context=96, warm="full")
    assert "deploy.warm" in failed.value.hint
    built = backend.build(tiny_llama(), slots=2, context=96, warm="background")
    assert isinstance(built.decoder, LlamaDecoder)
    assert "there is no C++ compiler" in built.note


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object, **__: object) -> None:
        raise TorchDynamoException("no header Python.h\nand forty lines more")

    monkeypatch.setattr(torch, "compile", failing)
    compiled = decoder(1, 96)
    with pytest.raises(LlmosError, match=r"^torch\.compile failed: no header Python\.h$") as failed:
        compiled.warm()
    assert "deploy.warm" in failed.value.hint
    in_background(compiled)
    assert eventually(lambda: not compiled.told.empty())
    assert list(compiled.news()) == ["torch.compile failed: no header Python.h; decoding goes on without"]
