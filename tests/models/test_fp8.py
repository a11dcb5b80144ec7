"""8-bit floats against every value there is, compressed-tensors' own arithmetic, and stock transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from llmos_cli.methods.grid import Grid, nearest_float
from llmos_cli.models import conformance, fp8, headers
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import unrounded
from llmos_cli.models.kernels import coded, forms
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.models.save import save
from tests.models.conftest import logits, make, quantize_all
from tests.models.test_quantized import stock

EVERY = torch.arange(256, dtype=torch.uint8).view(fp8.TYPE).float()
FINITE = EVERY[EVERY.isfinite()].unique()


@given(values=st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=20))
def test_codes_are_the_nearest_of_all_there_are(values: list[float]) -> None:
    given_V = torch.tensor(values)
    least_V = (FINITE[None] - given_V.clamp(-448, 448)[:, None]).abs().amin(1)
    assert torch.equal((fp8.coded(given_V).float() - given_V.clamp(-448, 448)).abs(), least_V)


def test_by_hand() -> None:
    """Three bits of mantissa: 17 lies between 16 and 18, and the even one is taken; 448 is the largest, 2^-9 the least."""
    assert fp8.coded(torch.tensor([17.0, 19.0, 1000.0, -0.001])).tolist() == [16.0, 20.0, 448.0, -(2**-9)]


def test_tokens_are_rounded_as_compressed_tensors_does() -> None:
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="token", dynamic=True)
    hidden_BLI = torch.randn(2, 3, 16) * torch.tensor([1.0, 30.0, 0.0])[:, None]
    scale, zero = compute_dynamic_scales_and_zp(hidden_BLI, args, nn.Linear(16, 1))
    assert torch.equal(fp8.round_tokens(hidden_BLI), fake_quantize(hidden_BLI, scale, zero, args))


def test_zeros_stay_and_a_row_of_them_is_no_trouble() -> None:
    weight_OI = torch.randn(4, 8)
    weight_OI[1], weight_OI[2, ::2] = 0, 0
    value_OI = nearest_float(weight_OI, Grid(8, 8, torch.bfloat16, floats=True)).dequantized()
    assert torch.equal(value_OI == 0, weight_OI == 0)
    assert ((value_OI - weight_OI).abs() <= weight_OI.abs() / 16 + 1e-3 + weight_OI.abs().amax() / 2**8).all()


def float_codes(name: str, weight: Tensor) -> Quantized:
    codes = nearest_float(weight.detach().float(), Grid(8, weight.shape[1], floats=True))
    return Quantized(codes.codes_OI, codes.scale_OG, 8)


def written(model: PreTrainedModel, directory: Path) -> Path:
    save(model, directory / "dense")
    write_quantized(directory / "q", directory / "dense", quantize_all(model, float_codes), "fp8")
    return directory / "q"


@pytest.mark.parametrize(("arch", "task"), [("llama", "causal-lm"), ("mlp", "image-classification")])
def test_stock_transformers_computes_the_same_logits(arch: str, task: str, tmp_path: Path) -> None:
    model = make(arch, task)
    directory = written(model, tmp_path)
    ours = load(directory)
    assert torch.equal(logits(stock(directory, task), task), logits(ours, task))
    assert any(isinstance(module, Float8Linear) for module in ours.modules())
    assert {entry.dtype for name, entry in headers.of_directory(directory).items() if name + "_scale" in headers.of_directory(directory)} == {"F8_E4M3"}  # fmt: skip
    assert headers.parameters(directory) == headers.parameters(tmp_path / "dense")


def test_held_for_inference(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Here no product with them is faster, so they are dequantized, and inputs are not rounded."""
    model = coded.load(written(llama, tmp_path))
    answer = logits(model, "causal-lm")
    layers = [module for module in model.modules() if isinstance(module, coded.CodedLinear)]
    assert {layer.chosen.names for layer in layers if layer.chosen} == {("dense",)}
    reference = unrounded(load(tmp_path / "q"))
    torch.testing.assert_close(answer, logits(reference, "causal-lm"))


def test_it_is_the_format(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = conformance.check(written(llama, tmp_path))
    assert found is not None and found.sentence == (
        "by its documented rules vLLM runs it: FP8 with a scale per channel, inputs scaled as they come; "
        "on GPUs older than Ada (8.9) with the inputs left as they are"
    )
    file = tmp_path / "q" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["type"] = "int"
    file.write_text(json.dumps(config))
    wrong = conformance.check(tmp_path / "q")
    assert wrong is not None and wrong.refused


def test_tensors_stay_on_their_device() -> None:
    with FakeTensorMode():
        x = torch.empty(3, 32, device="cuda")
        made = [fp8.round_tokens(x), fp8.scales_of(x), fp8.coded(x)]
    assert {value.device.type for value in made} == {"cuda"}
    assert "cuda fp8" in forms.FORMS
