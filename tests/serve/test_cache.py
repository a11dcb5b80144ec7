"""The cache in int8: what it rounds, what it weighs, and that decoding through it is decoding with rounded keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.serve import backend, cache
from llmos_cli.serve.compiled import CompiledDecoder, prepare
from llmos_cli.serve.decoder import LlamaDecoder
from llmos_cli.serve.engine import Engine, Request, Scored
from llmos_cli.serve.sequences import Served
from tests.serve.conftest import CONTEXT, VOCABULARY, tiny_llama
from tests.serve.test_engine import decode, prompts


class Rounding(DynamicCache):
    """transformers' cache, each head of each token rounded on its way in by loops over their definition."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return super().update(slowly(key_states), slowly(value_states), layer_idx, *args, **kwargs)


def slowly(states: Tensor) -> Tensor:
    out = torch.empty_like(states)
    for b, h, t in (
        (b, h, t) for b in range(len(states)) for h in range(states.shape[1]) for t in range(states.shape[2])
    ):
        step = float(states[b, h, t].abs().max()) / 127 or 1.0
        out[b, h, t] = torch.tensor([max(-127, min(127, round(v / step))) * step for v in states[b, h, t].tolist()])
    return out


def greedily(model: Any, prompt: tuple[int, ...], count: int) -> list[int]:
    tokens, kept = list(prompt), Rounding(config=model.config)
    new = tokens
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([new]), past_key_values=kept).logits[0, -1]
            new = [int(logits.argmax())]
            tokens += new
    return tokens[len(prompt) :]


def int8_engine(model: Any, slots: int) -> Engine:
    return Engine(backend.build(model, slots=slots, context=CONTEXT, warm="off", kv_cache="int8").decoder)


def test_requests_of_all_lengths_are_decoded_with_rounded_keys_and_values() -> None:
    """Four query heads share two key-value heads; nine requests share three slots, so rows move."""
    model = tiny_llama()
    given_ = prompts((3, 40, 1, 90, 7, 31, 5))
    made = decode(int8_engine(model, 3), [Request(index, prompt, 6) for index, prompt in enumerate(given_)])
    assert list(made.values()) == [greedily(model, prompt, 6) for prompt in given_]


def test_a_prompt_in_pieces_is_the_prompt() -> None:
    decoder = LlamaDecoder(tiny_llama(), slots=2, context=64, kv_cache="int8")
    tokens, positions = torch.arange(1, 41)[None], torch.arange(40)[None]
    whole = decoder.forward(tokens, positions, 0, every=True)
    for start in range(0, 40, 8):
        here = slice(start, start + 8)
        part = decoder.forward(tokens[:, here], positions[:, here], 1, every=True)
        torch.testing.assert_close(part, whole[:, here], atol=2e-3 * float(whole.abs().max()), rtol=0)


def test_by_hand() -> None:
    codes, scale = cache.rounded(torch.tensor([[[[1.0, -0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 0.0]]]]))
    assert codes.tolist() == [[[[127, -64, 32, 0], [0, 0, 0, 0]]]]
    assert scale.flatten().tolist() == pytest.approx([1 / 127, 0.0])


@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), narrow=st.booleans())
def test_no_value_is_off_by_more_than_half_a_step(values: list[float], narrow: bool) -> None:
    dtype = torch.bfloat16 if narrow else torch.float32
    given_1D = torch.tensor([values]).to(dtype)
    codes, scale = cache.rounded(given_1D[None, None])
    back = codes.float() * scale.float().unsqueeze(-1)
    # A scale that bf16 rounds down leaves the largest a little outside.
    most = given_1D.float().abs().max() / 127
    share = 0.51 if dtype == torch.float32 else 0.5 + 127 / 256
    assert (back[0, 0] - given_1D.float()).abs().max() <= share * most.clamp_min(torch.finfo(dtype).tiny)


@pytest.mark.parametrize("kind", cache.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_told_before_they_are_taken(kind: str, dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    decoder = LlamaDecoder(model, slots=3, context=32, kv_cache=kind)
    taken = sum(part.nbytes for layer in decoder.caches for part in layer if part is not None)
    assert taken == cache.bytes_of(model.config, slots=3, context=32, dtype=dtype, kind=kind)
    assert f"in {kind}" in backend.build(model, slots=3, context=32, warm="off", kv_cache=kind).note or kind == "keep"


def test_half_the_memory() -> None:
    config = tiny_llama(hidden_size=256).config
    sizes = [cache.bytes_of(config, slots=1, context=1023, dtype=torch.bfloat16, kind=kind) for kind in cache.KINDS]
    assert config.head_dim == 64 and sizes[1] / sizes[0] == (64 + 2) / 128


@pytest.mark.slow
def test_graphs_agree_with_it() -> None:
    prepare()
    decoder = CompiledDecoder(LlamaDecoder(tiny_llama(), slots=1, context=32, kv_cache="int8"))
    decoder.warm()
    assert list(decoder.news()) == ["compiled 1 of 1 shapes"]


def test_only_the_own_decoder_has_it() -> None:
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=CONTEXT)
    ).eval()
    with pytest.raises(LlmosError, match="its architecture is gpt2"):
        backend.build(other, slots=1, context=CONTEXT, warm="off", kv_cache="int8")
    with pytest.raises(UsageError, match="its architecture is gpt2"):
        Served(other, kv_cache="int8")(torch.tensor([[1, 2]]))


def test_evaluation_sees_what_is_served() -> None:
    """Scores of a prompt by the engine, and the same by whole padded sequences; not those of the plain model."""
    model = tiny_llama()
    rows = prompts((40, 9))
    engine = int8_engine(model, 2)
    for index, row in enumerate(rows):
        engine.submit(Request(index, row, 0, echo=True))
    told: dict[int, list[float]] = {}
    while engine.busy:
        told |= {e.id: [d.logprob for d in e.tokens[1:]] for e in engine.step() if isinstance(e, Scored)}
    ids, mask = torch.zeros(2, 40, dtype=torch.long), torch.zeros(2, 40, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
    served = Served(model, kv_cache="int8")(ids, mask).logits.log_softmax(-1)
    with torch.inference_mode():
        plain = model(ids, attention_mask=mask).logits.log_softmax(-1)
    for index, row in enumerate(rows):
        said = served[index, range(len(row) - 1), row[1:]]
        torch.testing.assert_close(torch.tensor(told[index]), said, atol=1e-3, rtol=0)
    assert 1e-5 < (served - plain)[0].abs().max() < 0.5


def test_tensors_stay_on_their_device() -> None:
    with FakeTensorMode():
        like = torch.empty(1, device="cuda", dtype=torch.bfloat16)
        kept = cache.empty((2, 2, 9, 4), like, "int8")
        codes, scale = cache.rounded(torch.empty(2, 1, 2, 4, device="cuda", dtype=torch.bfloat16))
        made = [*kept, codes, scale, cache.values_of(codes, scale)]
    assert {part.device.type for part in made if part is not None} == {"cuda"}
    assert made[-1].dtype == torch.bfloat16
