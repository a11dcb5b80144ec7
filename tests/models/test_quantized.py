from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CompressedTensorsConfig, PreTrainedModel

from llmos_cli.errors import Corrupt, LlmosError, UsageError
from llmos_cli.models import blocks, headers, packing
from llmos_cli.models.build import SUFFIXES
from llmos_cli.models.dequantize import bits_by_layer
from llmos_cli.models.int8 import QuantizedLinear, round_tokens
from llmos_cli.models.load import AUTO, load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import TRANSFORMER, embedded, logits, make, nearest, quantize_all


def stock(directory: Path, task: str, **options: object) -> PreTrainedModel:
    return AUTO[SUFFIXES[task]].from_pretrained(directory, dtype=torch.float32, **options).eval()


def quantized(model: PreTrainedModel, directory: Path, bits: int, group_size: int, **options: bool) -> Path:
    save(model, directory / "dense")
    codes = quantize_all(model, lambda name, weight: nearest(weight, bits, group_size, **options))
    write_quantized(directory / "quantized", directory / "dense", codes)
    return directory / "quantized"


@given(bits=st.integers(2, 8), rows=st.integers(1, 5), inputs=st.integers(1, 100), seed=st.integers(0, 999))
def test_packing_is_compressed_tensors_own(bits: int, rows: int, inputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, inputs), generator=generator, dtype=torch.int8)
    words = packing.pack(codes, bits)

    assert torch.equal(words, pack_to_int32(codes, bits))
    assert torch.equal(packing.unpack(words, bits, inputs), codes)
    assert torch.equal(unpack_from_int32(words, bits, codes.shape), codes)


def test_packing_by_hand() -> None:
    """Three-bit codes -4..3 are stored as 0..7, lowest bits first; the eleventh straddles two words."""
    codes = torch.tensor([[-3, -2] + [-4] * 8 + [3]], dtype=torch.int8)
    low, high = packing.pack(codes, 3)[0].tolist()
    assert low & 0xFFFFFFFF == 0b001 | 0b010 << 3 | 0b11 << 30
    assert high == 0b1


def test_tensors_stay_on_their_device() -> None:
    with FakeTensorMode():
        codes = torch.empty(4, 70, dtype=torch.int8, device="cuda")
        words = packing.pack(codes, 3)
        scales, zeros = torch.empty(4, 2, device="cuda"), torch.empty(4, 2, dtype=torch.int8, device="cuda")
        made = [words, packing.unpack(words, 3, 70), packing.dequantize(codes, scales, zeros), round_tokens(scales)]
    assert {tensor.device.type for tensor in made} == {"cuda"}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, -1])
def test_stock_transformers_computes_the_same_logits(
    llama: PreTrainedModel, tmp_path: Path, bits: int, group_size: int
) -> None:
    directory = quantized(llama, tmp_path, bits, group_size)
    ours = load(directory)
    assert torch.equal(logits(stock(directory, "causal-lm"), "causal-lm"), logits(ours, "causal-lm"))
    assert headers.parameters(directory) == headers.parameters(tmp_path / "dense")
    assert set(bits_by_layer(ours_config(directory), headers.of_directory(directory)).values()) == {bits}


@pytest.mark.parametrize("scheme", ["weights", "w8a8"])
@pytest.mark.parametrize(
    ("arch", "task", "own"),
    [("llama", "causal-lm", True), ("llama", "causal-lm", False), ("bert", "text-classification", False)],
)
def test_embeddings_as_codes_in_stock_transformers(
    arch: str, task: str, own: bool, scheme: Any, tmp_path: Path
) -> None:
    model, directory = embedded(arch, task, tmp_path, scheme, own_head=own)
    entries = headers.of_directory(directory)
    assert sum("embed" in name and entry.dtype == "I8" for name, entry in entries.items()) == 1
    assert ("lm_head.weight" in entries) == own
    tolerance = 1e-3 if (arch, scheme) == ("bert", "w8a8") else 0  # its pooler: see `models/int8.py`
    torch.testing.assert_close(
        logits(stock(directory, task), task), logits(load(directory), task), atol=tolerance, rtol=0
    )
    table = model.get_input_embeddings().weight
    assert torch.equal(load(directory).get_input_embeddings().weight, nearest(table, 8, 32).dense())
    assert headers.parameters(directory) == headers.parameters(tmp_path / "dense")


def test_the_weights_are_the_codes_times_their_scales(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = quantized(llama, tmp_path, 3, 32)
    name = "model.layers.1.mlp.down_proj.weight"
    expected = nearest(llama.get_parameter(name), 3, 32).dense()
    assert torch.equal(load(directory).get_parameter(name), expected)
    assert not hasattr(load(directory).config, "quantization_config")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_asymmetric_codes_load_here_and_dequantized_in_transformers(
    llama: PreTrainedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """transformers multiplies them out in the scales' dtype: in bf16 it would round every weight."""
    directory = quantized(deepcopy(llama).to(dtype), tmp_path, 4, 32, asymmetric=True)
    plain = stock(directory, "causal-lm", quantization_config=CompressedTensorsConfig(dequantize=True))
    torch.testing.assert_close(logits(load(directory), "causal-lm"), logits(plain, "causal-lm"))


def test_layers_may_have_bits_of_their_own(llama: PreTrainedModel, tmp_path: Path) -> None:
    save(llama, tmp_path / "dense")
    codes = quantize_all(llama, lambda name, weight: nearest(weight, 2 if "mlp" in name else 4, 32))
    del codes["model.layers.0.self_attn.q_proj"]
    write_quantized(tmp_path / "q", tmp_path / "dense", codes)

    assert torch.equal(
        logits(stock(tmp_path / "q", "causal-lm"), "causal-lm"), logits(load(tmp_path / "q"), "causal-lm")
    )
    assert ours_config(tmp_path / "q")["quantization_config"]["ignore"] == [
        "lm_head",
        "model.layers.0.self_attn.q_proj",
    ]


def test_bits_whose_codes_fill_equally_many_words_are_told_apart_by_name(tmp_path: Path) -> None:
    """Eight codes of 3 bits fill one word, as eight of 4 bits do."""
    narrow = make("llama", "causal-lm", {**TRANSFORMER, "intermediate_size": 8})
    save(narrow, tmp_path / "dense")
    codes = quantize_all(narrow, lambda name, weight: nearest(weight, 3 if "down_proj" in name else 4))
    write_quantized(tmp_path / "q", tmp_path / "dense", codes)
    assert torch.equal(
        logits(stock(tmp_path / "q", "causal-lm"), "causal-lm"), logits(load(tmp_path / "q"), "causal-lm")
    )


def test_one_scheme_is_described_as_the_format_asks(llama: PreTrainedModel, tmp_path: Path) -> None:
    assert ours_config(quantized(llama, tmp_path, 4, 32))["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "input_activations": None,
                "output_activations": None,
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                    "actorder": None,
                    "observer": "minmax",
                },
            }
        },
    }


@pytest.mark.parametrize("arch", ["llama", "mlp"])
def test_w8a8_rounds_inputs_as_compressed_tensors_does(arch: str, tmp_path: Path) -> None:
    task = "causal-lm" if arch == "llama" else "image-classification"
    model = make(arch, task)
    save(model, tmp_path / "dense")
    codes = quantize_all(model, lambda name, weight: nearest(weight, 8))
    write_quantized(tmp_path / "q", tmp_path / "dense", codes, "w8a8")
    ours = load(tmp_path / "q")

    assert torch.equal(logits(stock(tmp_path / "q", task), task), logits(ours, task))
    rounded = {name for name, module in ours.named_modules() if isinstance(module, QuantizedLinear)}
    assert rounded == set(codes)
    assert not torch.equal(logits(ours, task), logits(model, task))


def test_rounding_a_token_by_hand() -> None:
    """Scale 2.55 / 127.5 = 0.02: 1.03 is 51.5 steps and goes to the even 52; the largest is clamped to 127 steps."""
    assert round_tokens(torch.tensor([[2.55, 1.03, -2.55, 0.0]])).tolist()[0] == pytest.approx([2.54, 1.04, -2.56, 0.0])


def test_the_gradient_passes_the_rounding() -> None:
    layer = QuantizedLinear.of(nn.Linear(4, 2))
    inputs = torch.randn(3, 4, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(3, 4))


@pytest.mark.parametrize(
    ("arch", "task"),
    [
        ("cnn", "image-classification"),
        ("lstm", "text-classification"),
        ("lstm", "causal-lm"),
        ("vit", "image-classification"),
        ("bert", "token-classification"),
        ("eurobert", "token-classification"),
    ],
)
def test_every_kind_of_model_comes_back(arch: str, task: str, tmp_path: Path) -> None:
    model = make(arch, task)
    directory = quantized(model, tmp_path, 4, 32)
    ours, theirs = load(directory), stock(directory, task)
    assert torch.equal(logits(theirs, task), logits(ours, task))
    with torch.no_grad():
        for name, layer in blocks.layers(model).items():
            for part, weight in blocks.weights(layer).items():
                bits, group = (8, -1) if isinstance(layer, nn.Conv2d | nn.LSTM) else (4, 32)
                assert torch.equal(ours.get_parameter(f"{name}.{part}"), nearest(weight, bits, group).dense())
    assert size(directory) < 0.6 * size(tmp_path / "dense")


def test_zeros_stay_zeros(llama: PreTrainedModel, tmp_path: Path) -> None:
    model = make("llama", "causal-lm")
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[:, ::2] = 0
    assert (load(quantized(model, tmp_path, 4, 32)).get_parameter(name)[:, ::2] == 0).all()


def test_what_cannot_be_written_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = quantized(llama, tmp_path, 4, 32)
    codes: dict[str, Quantized] = {}
    with pytest.raises(UsageError, match="quantized already"):
        write_quantized(tmp_path / "again", directory, codes)
    with pytest.raises(LlmosError, match="is not stored as one tensor"):
        write_quantized(tmp_path / "again", tmp_path / "dense", {"nowhere": nearest(torch.ones(2, 2), 4)})


def test_a_description_that_does_not_fit_the_words_is_corrupt(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = quantized(llama, tmp_path, 4, 32)
    config = ours_config(directory)
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(Corrupt, match=r"does not say how model\.layers\.0"):
        load(directory)


def ours_config(directory: Path) -> dict[str, object]:
    return dict(json.loads((directory / "config.json").read_text()))


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
