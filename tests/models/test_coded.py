"""Quantized checkpoints loaded for inference: codes instead of dense weights, and the answers of the dequantized model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from llmos_cli.methods.eval import Subject, memory
from llmos_cli.models.kernels import choice, coded, forms, native
from llmos_cli.models.kernels.choice import NOISE
from llmos_cli.models.kernels.coded import CodedEmbedding, CodedLinear
from llmos_cli.models.kernels.codes import Codes
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from llmos_cli.serve.compiled import CompiledDecoder, prepare
from llmos_cli.serve.decoder import LlamaDecoder
from tests.models.conftest import CASES, batch, embedded, logits, make, nearest, quantize_all

TOLERANCE = 0.02
"""Of logits, relative to the largest: activations or weights rounded to bf16 in a model that computes in fp32."""


def written(model: PreTrainedModel, directory: Path, bits: int, group: int, scheme: str = "weights") -> Path:
    save(model, directory / "dense")
    codes: dict[str, Quantized] = quantize_all(model, lambda name, weight: nearest(weight, bits, group))
    write_quantized(directory / "quantized", directory / "dense", codes, scheme)  # type: ignore[arg-type]
    return directory / "quantized"


def closeness(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


@pytest.mark.parametrize(
    ("bits", "group", "scheme"), [(4, 32, "weights"), (3, -1, "weights"), (8, -1, "weights"), (8, -1, "w8a8")]
)
@pytest.mark.parametrize(("arch", "task", "widths"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_kind_of_model_answers_as_its_reference(
    arch: str, task: str, widths: dict[str, object], bits: int, group: int, scheme: str, tmp_path: Path
) -> None:
    model = make(arch, task, widths)
    if any(isinstance(module, nn.Linear) and module.in_features % 32 for module in model.modules()):
        group = -1
    directory = written(model, tmp_path, bits, group, scheme)
    assert closeness(logits(coded.load(directory), task), logits(load(directory), task)) < TOLERANCE


def test_no_dense_weight_is_held(llama: PreTrainedModel, tmp_path: Path) -> None:
    model = coded.load(written(llama, tmp_path, 4, 32))
    layers = [module for module in model.modules() if isinstance(module, CodedLinear)]
    assert len(layers) == 14 and not any(layer.chosen for layer in layers)
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} == {"lm_head"}
    held = sum(parameter.numel() for parameter in model.parameters())
    assert held < 0.5 * sum(parameter.numel() for parameter in llama.parameters())


@pytest.mark.parametrize(
    ("arch", "task", "own"),
    [("llama", "causal-lm", True), ("llama", "causal-lm", False), ("bert", "text-classification", False)],
)
def test_embeddings_are_looked_up_as_codes(arch: str, task: str, own: bool, tmp_path: Path) -> None:
    _, directory = embedded(arch, task, tmp_path, own_head=own)
    model = coded.load(directory)
    assert isinstance(model.get_input_embeddings(), CodedEmbedding)
    assert (task != "causal-lm") or isinstance(model.get_output_embeddings(), CodedLinear)
    assert closeness(logits(model, task), logits(load(directory), task)) < TOLERANCE
    rows = torch.tensor([[0, 7], [299, 7]])
    assert torch.equal(model.get_input_embeddings()(rows), load(directory).get_input_embeddings()(rows))


def test_the_decoder_looks_them_up_too(tmp_path: Path) -> None:
    _, directory = embedded("llama", "causal-lm", tmp_path)
    tokens, positions = torch.arange(1, 9)[None], torch.arange(8)[None]
    decoder = LlamaDecoder(coded.load(directory), slots=1, context=16)
    reference = LlamaDecoder(load(directory), slots=1, context=16)
    answers = [each.forward(tokens, positions, 0, every=True) for each in (decoder, reference)]
    assert closeness(*answers) < TOLERANCE


def in_our_order(codes: Codes, dtype: torch.dtype) -> dict[str, list[float]]:
    def rank(name: str) -> float:
        return 3.0 if name == "dense" else 2.0 if name.startswith("torch") else 1.0

    return {name: [rank(name)] * len(choice.ROWS) for name in forms.usable(codes, dtype)}


def test_codes_are_less_memory_while_a_batch_is_answered(
    tmp_path: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch's products are slower for many rows, and a dense copy is held beside them
    monkeypatch.delenv("LLMOS_COMPILE")
    with monkeypatch.context() as patch:
        patch.setenv("LLMOS_CACHE_HOME", str(libraries))
        if native.obstacle() == "LLMOS_COMPILE is off":
            native.obstacle.cache_clear()
            native.obstacle()
    # How fast each form was found, on a machine that others use too, is not what this is about: ours before torch's before dense.
    monkeypatch.setattr(choice, "measured", in_our_order)
    wide = make("llama", "causal-lm", {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2})
    directory = written(wide, tmp_path, 4, 64)
    given = batch("causal-lm", rows=1)

    def peak(model: PreTrainedModel) -> int:
        logits(model, "causal-lm")  # codes are read at the first answer
        subject = Subject(model, [None], directory, 1, 1)  # type: ignore[arg-type]
        return memory.peak_of_tensors(subject, given)

    dense, held = (
        peak(load(tmp_path / "dense", dtype=torch.bfloat16)),
        peak(coded.load(directory, dtype=torch.bfloat16)),
    )
    assert held < 0.5 * dense


def test_a_dense_checkpoint_is_loaded_as_ever(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path / "dense")
    assert torch.equal(logits(coded.load(tmp_path / "dense"), "causal-lm"), logits(llama, "causal-lm"))


@pytest.mark.parametrize("way", coded.HEADS)
def test_a_head_is_rounded_in_memory(llama: PreTrainedModel, tmp_path: Path, way: str) -> None:
    save(llama, tmp_path / "dense")
    model, reference = coded.load(tmp_path / "dense"), logits(llama, "causal-lm")
    embedding = model.get_input_embeddings().weight.clone()
    coded.quantize_head(model, way)
    assert isinstance(model.get_output_embeddings(), CodedLinear)
    assert 0 < closeness(logits(model, "causal-lm"), reference) < (0.15 if way == "w4" else TOLERANCE)
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def decoded(model: PreTrainedModel) -> tuple[torch.Tensor, LlamaDecoder]:
    decoder = LlamaDecoder(model, slots=2, context=32)
    tokens_BL = torch.arange(1, 13).view(2, 6)
    prompt = decoder.forward(tokens_BL, torch.arange(6).repeat(2, 1), 0, every=True)
    following = decoder.forward(tokens_BL[:, :1], torch.full((2, 1), 6), 0, every=False)
    return torch.cat([prompt.flatten(), following.flatten()]), decoder


@pytest.mark.parametrize("scheme", ["weights", "w8a8", "mixed"])
def test_the_decoder_multiplies_codes_and_says_with_what(llama: PreTrainedModel, tmp_path: Path, scheme: str) -> None:
    """`mixed`: query, key and value have codes of different widths, or none."""
    if scheme == "mixed":
        save(llama, tmp_path / "dense")
        codes = quantize_all(llama, lambda name, weight: nearest(weight, 8 if "k_proj" in name else 4, 32))
        del codes["model.layers.0.self_attn.q_proj"]
        write_quantized(tmp_path / "quantized", tmp_path / "dense", codes)
    else:
        written(llama, tmp_path, 8 if scheme == "w8a8" else 4, -1 if scheme == "w8a8" else 32, scheme)
    found, decoder = decoded(coded.load(tmp_path / "quantized"))
    reference, dense = decoded(load(tmp_path / "quantized"))
    assert closeness(found, reference) < TOLERANCE
    sentences = coded.summary(decoder.products)
    assert all(" tokens" in sentence or "dequantized" in sentence for sentence in sentences)
    assert len(sentences) >= 4 or scheme == "mixed"
    assert coded.summary(dense.products) == []


def test_what_is_chosen_is_never_slower_than_dense(llama: PreTrainedModel, tmp_path: Path) -> None:
    """By its own measurement, of every kind of layer of the model."""
    _, decoder = decoded(coded.load(written(llama, tmp_path, 4, 32)))
    for product in decoder.products:
        for at, dense in enumerate(getattr(product, "times", {}).get("dense", ())):
            used = [name for name in product.names if name == "dense" or product.times[name][at] <= NOISE * dense]  # type: ignore[attr-defined]
            assert used


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["weights", "w8a8"])
def test_codes_are_compiled_into_the_graph(llama: PreTrainedModel, tmp_path: Path, scheme: str) -> None:
    directory = written(llama, tmp_path, 8 if scheme == "w8a8" else 4, -1, scheme)
    prepare()
    compiled = CompiledDecoder(LlamaDecoder(coded.load(directory), slots=1, context=32))
    compiled.warm()
    assert list(compiled.news()) == ["compiled 1 of 1 shapes"]
