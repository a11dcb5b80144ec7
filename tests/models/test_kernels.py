"""Products with codes against the arithmetic they stand for, written out in float64; which product is chosen, and that it is remembered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llmos_cli import device
from llmos_cli.models import fp8, int8
from llmos_cli.models.kernels import choice, forms, native
from llmos_cli.models.kernels.codes import Codes, rounded, side_by_side

ROUNDED_ONCE, IN_BF16 = 1e-5, 1e-2
"""Largest error over largest value: of fp32 sums alone; of weights or activations rounded to bf16 (8 bits of mantissa)."""


@pytest.fixture(autouse=True)
def with_a_compiler(own_home: Path, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_COMPILE")
    with monkeypatch.context() as patch:
        patch.setenv("LLMOS_CACHE_HOME", str(libraries))
        if native.obstacle() == "LLMOS_COMPILE is off":  # another test's answer; a library is loaded once
            native.obstacle.cache_clear()
            native.obstacle()


def layer(
    outputs: int, inputs: int, bits: int, *, group: int | None = None, bias: bool = False, w8a8: bool = False
) -> Codes:
    torch.manual_seed(outputs + inputs + bits)
    codes = rounded(torch.randn(outputs, inputs), bits, group, torch.randn(outputs) if bias else None)
    return replace(codes, rounds_inputs=w8a8)


def exact(codes: Codes, x: Tensor) -> Tensor:
    """What the codes mean, in float64."""
    x = (int8.round_tokens(x.float()) if codes.rounds_inputs else x).double()
    groups = codes.scales_OG.shape[1]
    zeros = 0 if codes.zeros_OG is None else codes.zeros_OG.double().unsqueeze(-1)
    weight = (codes.codes_OI.double().unflatten(1, (groups, -1)) - zeros) * codes.scales_OG.double().unsqueeze(-1)
    answer = x @ weight.flatten(1).t()
    return answer if codes.bias_O is None else answer + codes.bias_O.double()


def error(answer: Tensor, wanted: Tensor) -> float:
    return float((answer.double() - wanted).abs().max() / wanted.abs().max())


def parts_error(answer: Tensor, codes: Codes, x: Tensor) -> float:
    """The largest error of an element over the root of its terms' squares: what cancels to nearly nothing is rounded none the less."""
    plain = replace(codes, bias_O=None, rounds_inputs=False)
    squares = replace(plain, codes_OI=codes.codes_OI.int() ** 2, scales_OG=codes.scales_OG**2)
    wanted = exact(codes, x)
    made_of = exact(squares, x.double() ** 2).sqrt() + wanted.abs()
    return float(((answer.double() - wanted).abs() / made_of.clamp_min(1e-9)).max())


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 17])
@pytest.mark.parametrize(
    "codes",
    [
        layer(64, 64, 8, w8a8=True),
        layer(70, 101, 8, bias=True, w8a8=True),
        layer(64, 64, 8),
        layer(130, 99, 8, bias=True),
        layer(70, 96, 8, group=32),
        layer(64, 64, 4),
        layer(70, 97, 4, bias=True),
        layer(192, 640, 4, group=128),
        layer(32, 64, 3, group=32),
        layer(1, 8, 2),
        layer(64, 2100, 4),
        layer(64, 1056, 8, group=264),
    ],
    ids=lambda codes: codes.kind(),
)
def test_every_form_computes_what_the_codes_mean(codes: Codes, rows: int):
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, 1, codes.shape[1]).to(dtype)
        for name in forms.usable(codes, dtype):
            if name == "dense" and codes.rounds_inputs:
                continue
            answer = forms.build(name, codes, dtype).product(x)
            assert answer.dtype == dtype and answer.shape == (rows, 1, codes.shape[0])
            strict = dtype == torch.float32 and name in ("dense", "native w8a8")
            assert parts_error(answer, codes, x) < (ROUNDED_ONCE if strict else 1.5 * IN_BF16), name


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17])
def test_codes_may_begin_anywhere_in_a_file(rows: int):
    """A product that wants them aligned ends this process."""
    for scheme in ({}, {"w8a8": True}):
        codes = layer(300, 32, 8, **scheme)
        place = torch.empty(codes.codes_OI.numel() + 64, dtype=torch.int8)
        at = -place.data_ptr() % 64 + 8
        moved = place[at : at + codes.codes_OI.numel()].view_as(codes.codes_OI).copy_(codes.codes_OI)
        assert moved.data_ptr() % 16 == 8
        x = torch.randn(rows, 32).bfloat16()
        for name in forms.usable(there := replace(codes, codes_OI=moved), torch.bfloat16):
            here, answer = (forms.build(name, each, torch.bfloat16).product(x) for each in (codes, there))
            assert torch.equal(answer, here), name


def test_a_product_worked_by_hand():
    """Rows [1, -2] and [4, 0] with codes [[3, 1], [-4, 2]], scales [1/2, 2]; 4 bits leave such numbers as they are."""
    codes = Codes(torch.tensor([[3, 1], [-4, 2]], dtype=torch.int8), torch.tensor([[0.5], [2.0]]), 4)
    x = torch.tensor([[1.0, -2.0], [4.0, 0.0]])
    for name in forms.usable(codes, torch.float32):
        assert forms.build(name, codes, torch.float32).product(x).tolist() == [[0.5, -16.0], [6.0, -32.0]]


@given(st.integers(1, 9), st.integers(1, 140), st.integers(1, 80), st.sampled_from([2, 3, 4, 5, 8]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_shape_is_multiplied(rows: int, outputs: int, inputs: int, bits: int, w8a8: bool):
    codes = layer(outputs, inputs, bits, w8a8=w8a8)
    x = torch.randn(rows, inputs)
    for name in forms.usable(codes, torch.float32):
        if name != "dense":
            assert parts_error(forms.build(name, codes, torch.float32).product(x), codes, x) < 1.5 * IN_BF16, name


def test_rows_never_depend_on_each_other_and_zero_rows_are_zero():
    codes = layer(96, 64, 8, w8a8=True)
    x = torch.randn(5, 64)
    x[2], x[3, 7] = 0, float("nan")
    for name in forms.usable(codes, torch.float32):
        product = forms.build(name, codes, torch.float32).product
        answer = product(x)
        assert torch.equal(answer[1:2], product(x[1:2])) or name == "dense"
        assert not answer[2].any() and answer[3].isnan().all() and not answer[4].isnan().any()


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_threads_share_the_outputs_and_change_no_bit(rows: int):
    x = torch.randn(rows, 2048)
    for codes in (layer(1000, 2048, 8, w8a8=True), layer(1000, 2048, 4, group=128), layer(1000, 2048, 8)):
        for name in forms.usable(codes, torch.float32):
            if name.startswith("native"):
                product = forms.build(name, codes, torch.float32).product
                alone = product(x)
                threads = torch.get_num_threads()
                torch.set_num_threads(2)
                shared = product(x)
                torch.set_num_threads(threads)
                assert torch.equal(alone, shared)


def test_asymmetric_codes_are_multiplied_by_what_can():
    codes = replace(layer(64, 64, 4, group=32), zeros_OG=torch.randint(-8, 8, (64, 2), dtype=torch.int8))
    x = torch.randn(3, 64).bfloat16()
    for name in forms.usable(codes, torch.bfloat16):
        assert error(forms.build(name, codes, torch.bfloat16).product(x), exact(codes, x)) < IN_BF16, name


def test_layers_side_by_side_answer_as_each_does():
    parts = [layer(64, 96, 4, group=32), layer(32, 96, 4, group=32, bias=True)]
    x = torch.randn(2, 96)
    joined = side_by_side(parts)
    assert joined is not None
    for name in forms.usable(joined, torch.float32):
        answer = forms.build(name, joined, torch.float32).product(x)
        assert error(answer, torch.cat([exact(part, x) for part in parts], 1)) < IN_BF16
    assert side_by_side([parts[0], layer(64, 96, 8)]) is None


def test_codes_take_the_memory_that_their_bits_say():
    for codes, share in (
        (layer(256, 512, 4, group=128), 0.27),
        (layer(256, 512, 8), 0.51),
        (layer(256, 512, 8, w8a8=True), 0.52),
    ):
        held = {name: forms.build(name, codes, torch.bfloat16).bytes for name in forms.usable(codes, torch.bfloat16)}
        assert all(size <= share * held["dense"] for name, size in held.items() if name != "dense")


def test_one_form_is_taken_if_it_is_nowhere_slower_than_dense():
    assert choice.best({"dense": [4, 4, 4, 4], "a": [1, 2, 3, 4.1], "b": [1, 1, 1, 5]}) == ["a"] * 4
    assert choice.best({"dense": [4, 4, 4, 4], "b": [1, 1, 1, 5]}) == ["b", "b", "b", "dense"]
    assert choice.best({"dense": [1, 1, 1, 1], "b": [2, 2, 2, 2]}) == ["dense"] * 4
    assert choice.best({"dense": [1.0] * 4}) == ["dense"] * 4


def test_two_forms_share_the_rows_between_them(monkeypatch: pytest.MonkeyPatch):
    codes = layer(64, 64, 4)
    times = {
        name: [1.0, 1.0, 1.0, 1.0] if name == "dense" else [0.5, 0.5, 2.0, 2.0]
        for name in forms.usable(codes, torch.float32)
    }
    monkeypatch.setattr(choice, "measured", lambda codes, dtype: times)
    chosen = choice.choose(codes, torch.float32)
    for rows in (1, 15, 16, 200):
        x = torch.randn(rows, 64)
        assert error(chosen(x), exact(codes, x)) < IN_BF16
    if len(times) > 1:
        assert chosen.names[-1] == "dense" and chosen.limits == (16.0, float("inf"))


def test_a_measurement_is_made_once_and_answers_for_its_kind_alone(own_home: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    timed = choice.time_forms
    monkeypatch.setattr(choice, "time_forms", lambda codes, *more: made.append(codes.kind()) or timed(codes, *more))
    one, other = layer(64, 128, 8), layer(64, 256, 8)
    first = choice.measured(one, torch.bfloat16)
    assert choice.measured(one, torch.bfloat16) == first
    choice.measured(other, torch.bfloat16)
    assert made == [one.kind(), other.kind()]
    kept = json.loads((own_home / "cache" / "kernels.json").read_text())
    assert len(kept) == 2 and all(set(times) == set(first) for times in kept.values())


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_seconds_are_those_of_the_form_that_would_be_taken_and_fewer_bits_than_it_holds_gain_nothing(
    own_home: Path, rows: int
):
    found = {bits: choice.seconds(layer(64, 128, bits, group=64), torch.bfloat16, rows) for bits in (2, 3, 4, 5, 8)}
    assert found[2] == found[3] == found[4] and found[5] == found[8]
    names = choice.choose(layer(64, 128, 4, group=64), torch.bfloat16)
    used = next(form.name for limit, form in zip(names.limits, names.forms, strict=True) if rows < limit)
    assert found[4] == choice.measured(layer(64, 128, 4, group=64), torch.bfloat16, (rows,))[used][0] > 0


def test_a_file_of_measurements_that_is_not_one_is_made_anew(own_home: Path):
    (own_home / "cache").mkdir(exist_ok=True)
    (own_home / "cache" / "kernels.json").write_text("{half")
    assert set(choice.measured(layer(64, 128, 8), torch.bfloat16)) >= {"dense", "torch int8"}


@pytest.mark.parametrize("name", ["cuda w8a8", "cuda fp8", "torch int8", "torch int4"])
def test_products_on_an_accelerator_stay_there(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "capability", lambda where: (8, 9))
    with FakeTensorMode():
        made = {"dtype": fp8.TYPE if name == "cuda fp8" else torch.int8, "device": "cuda"}
        groups = 2 if name == "torch int4" else 1
        codes = Codes(
            torch.empty(64, 256, **made),
            torch.empty(64, groups, device="cuda"),
            4 if groups == 2 else 8,
            name in ("cuda w8a8", "cuda fp8"),
        )
        assert name in forms.usable(codes, torch.bfloat16)
        x = torch.empty(3, 256, dtype=torch.bfloat16, device="cuda")
        answer = forms.build(name, codes, torch.bfloat16).product(x)
        assert answer.device.type == "cuda" and answer.shape == (3, 64) and answer.dtype == torch.bfloat16


def test_without_our_kernels_torch_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "obstacle", lambda: "there is no C++ compiler")
    codes, x = layer(64, 64, 8), torch.randn(2, 64).bfloat16()
    assert forms.usable(codes, torch.bfloat16) == ["dense", "torch int8"]
    assert error(choice.choose(codes, torch.bfloat16)(x), exact(codes, x)) < IN_BF16


def test_why_our_kernels_are_not_there_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "instructions", lambda: frozenset(native.NEEDED))
    monkeypatch.setenv("LLMOS_COMPILE", "off")
    assert native.unsuited() == "LLMOS_COMPILE is off"
    monkeypatch.delenv("LLMOS_COMPILE")
    monkeypatch.setenv("PATH", "")
    assert native.unsuited() == "there is no C++ compiler"
    monkeypatch.setattr(device, "instructions", lambda: frozenset({"sse2"}))
    assert native.unsuited() == "the processor lacks avx512f"
