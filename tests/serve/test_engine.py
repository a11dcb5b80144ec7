"""The engine: what it decodes is what transformers decodes, whoever shares the batch."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmos_cli.serve import backend
from llmos_cli.serve.engine import CHUNK, Engine, Finished, Request, Scored, Token
from llmos_cli.serve.sampling import Drawn, Sampling
from tests.serve.conftest import CONTEXT, VOCABULARY, tiny_llama

LENGTHS = (3, 40, 1, 150, 7, 31, 90, 5, 2)


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    generator = random.Random(0)
    return [tuple(generator.randrange(1, VOCABULARY) for _ in range(length)) for length in lengths]


def engine_of(model: Any, *, slots: int = 4, context: int = CONTEXT) -> Engine:
    return Engine(backend.build(model, slots=slots, context=context, warm="off").decoder)


def decode(engine: Engine, requests: Sequence[Request]) -> dict[int, list[int]]:
    """Tokens by request, all of them submitted at once."""
    for request in requests:
        engine.submit(request)
    got: dict[int, list[int]] = {request.id: [] for request in requests}
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Token):
                got[event.id].append(event.drawn.token)
    return got


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """One prompt by transformers' own generate."""
    tokens = torch.tensor([prompt])
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


def others() -> dict[str, Any]:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    from llmos_cli.models.architectures.lstm import LstmConfig, LstmForCausalLM

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
    }
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.3}
    return {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**shape, sliding_window=None)),
        "sliding": lambda: MistralForCausalLM(MistralConfig(**shape, sliding_window=16)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **gpt2)),
        "lstm": lambda: LstmForCausalLM(LstmConfig(vocab_size=VOCABULARY, hidden_size=32)),
    }


def test_mixed_lengths_over_four_slots_equal_transformers_one_by_one():
    model = tiny_llama()
    requests = [Request(index, prompt, 10 + 3 * index) for index, prompt in enumerate(prompts())]
    got = decode(engine_of(model), requests)
    assert got == {request.id: greedy(model, request.tokens, request.max_tokens) for request in requests}


def test_prompts_longer_than_a_chunk_equal_transformers():
    model = tiny_llama(max_position_embeddings=2 * CHUNK + 64)
    requests = [Request(index, prompt, 8) for index, prompt in enumerate(prompts((2 * CHUNK + 10, 5, CHUNK + 1)))]
    got = decode(engine_of(model, context=2 * CHUNK + 64), requests)
    assert got == {request.id: greedy(model, request.tokens, 8) for request in requests}


def test_requests_join_and_leave_between_steps():
    model = tiny_llama()
    engine, generator = engine_of(model), random.Random(1)
    requests = [Request(index, prompt, 20) for index, prompt in enumerate(prompts())]
    waiting, got = list(requests), {request.id: [] for request in requests}
    while waiting or engine.busy:
        if waiting and generator.random() < 0.4:
            engine.submit(waiting.pop(0))
        for event in engine.step():
            if isinstance(event, Token):
                got[event.id].append(event.drawn.token)
    assert got == {request.id: greedy(model, request.tokens, 20) for request in requests}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2", "own"),
        ("qwen3", "own"),
        ("mistral", "own"),
        ("sliding", "transformers-uncached"),
        ("gpt2", "transformers"),
        ("lstm", "transformers-uncached"),
    ],
)
def test_every_family_is_served_and_says_how(family: str, name: str):
    torch.manual_seed(0)
    model = others()[family]().eval()
    built = backend.build(model, slots=3, context=CONTEXT, warm="off")
    assert built.name == name
    requests = [Request(index, prompt, 6) for index, prompt in enumerate(prompts((3, 40, 1, 17)))]
    assert decode(Engine(built.decoder), requests) == {
        request.id: plain_greedy(model, request.tokens, 6) for request in requests
    }


def plain_greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """By whole forwards: the definition, for models that `generate` treats differently."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_sixteen_streams_decode_at_least_three_times_the_tokens_of_one():
    engine = engine_of(tiny_llama(), slots=16)

    def rate(streams: int) -> float:
        requests = [Request(index, (1, 2, 3), 40) for index in range(streams)]
        start = time.process_time()
        decode(engine, requests)
        return streams * 40 / (time.process_time() - start)

    rate(16)
    ratios = [rate(16) / rate(1) for _ in range(3)]
    assert max(ratios) >= 3, ratios


def test_an_end_token_stops_and_is_not_said():
    model = tiny_llama()
    expected = greedy(model, (1, 2, 3), 10)
    engine = Engine(backend.build(model, slots=2, context=CONTEXT, warm="off").decoder, end_tokens=[expected[4]])
    engine.submit(Request(1, (1, 2, 3), 10))
    events = [event for _ in range(10) for event in engine.step()]
    assert [event.drawn.token for event in events if isinstance(event, Token)] == expected[:4]
    assert events[-1] == Finished(1, "stop")


def test_the_context_ends_a_stream():
    engine = engine_of(tiny_llama(), context=16)
    got = decode(engine, [Request(1, tuple(range(1, 11)), 100)])
    assert len(got[1]) == 6


def test_a_cancelled_request_frees_its_slot_and_the_others_go_on():
    model = tiny_llama()
    engine = engine_of(model, slots=2)
    for index in range(3):
        engine.submit(Request(index, (index + 1, 5), 12))
    first = engine.step()
    engine.cancel(0)
    events = first + [event for _ in range(40) for event in engine.step()]
    assert not engine.busy
    assert tokens_of(events, 1) == greedy(model, (2, 5), 12)
    assert tokens_of(events, 2) == greedy(model, (3, 5), 12)
    assert len(tokens_of(events, 0)) == 2


def tokens_of(events: Sequence[Any], id: int) -> list[int]:
    return [event.drawn.token for event in events if isinstance(event, Token) and event.id == id]


def test_echo_scores_every_token_of_the_prompt():
    model = tiny_llama(max_position_embeddings=512)
    prompt = prompts((CHUNK + 40,))[0]
    engine = engine_of(model, context=512)
    engine.submit(Request(1, prompt, 0, Sampling(temperature=0, logprobs=2), echo=True))
    events = [event for _ in range(3) for event in engine.step()]
    scored = next(event.tokens for event in events if isinstance(event, Scored))
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert [drawn.token for drawn in scored] == list(prompt)
    assert scored[0] == Drawn(prompt[0])
    expected = [float(logprobs[place, token]) for place, token in enumerate(prompt[1:])]
    assert [drawn.logprob for drawn in scored[1:]] == pytest.approx(expected, abs=1e-4)
    assert scored[9].top[0][1] == pytest.approx(float(logprobs[8].max()), abs=1e-4)
    assert events[-1] == Finished(1, "length")


def test_a_seed_gives_the_same_tokens_alone_and_in_company():
    wish = Sampling(temperature=0.9, top_p=0.9, seed=7)
    alone = decode(engine_of(tiny_llama()), [Request(1, (4, 5), 15, wish)])[1]
    company = [Request(index, prompt, 15, Sampling(seed=index)) for index, prompt in enumerate(prompts((9, 2)), 2)]
    assert decode(engine_of(tiny_llama()), [*company, Request(1, (4, 5), 15, wish)])[1] == alone
    assert decode(engine_of(tiny_llama()), [Request(1, (4, 5), 15, Sampling(temperature=0.9, seed=8))])[1] != alone


def test_a_cache_that_does_not_fit_is_refused_before_it_is_allocated():
    from llmos_cli.errors import LlmosError

    with pytest.raises(LlmosError, match="the cache of 1000000000 slots"):
        backend.build(tiny_llama(), slots=1_000_000_000, context=CONTEXT, warm="off")


def test_a_context_beyond_the_models_is_refused():
    from llmos_cli.errors import LlmosError

    with pytest.raises(LlmosError, match=f"the model has {CONTEXT} positions"):
        backend.build(tiny_llama(), slots=1, context=CONTEXT + 1, warm="off")
