"""Sensitivities measured on small models: each part is what readers fuse, and the sum foretells the whole."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmos_cli.events import ignore
from llmos_cli.methods.grid import Grid, nearest, widest
from llmos_cli.models.matrices import Matrix, matrices
from llmos_cli.operations.compression.sensitivity import mean_kl, scored, sensitivities
from llmos_cli.tasks.base import Batch
from llmos_cli.tasks.causal_lm import TASK

BITS = (3, 4, 8)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def probes() -> list[Batch]:
    tokens = torch.randint(0, 64, (8, 33), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}]


def measured(model: LlamaForCausalLM, probes: list[Batch]):  # type: ignore[no-untyped-def]
    calibration = [{"input_ids": probes[0]["input_ids"]}]
    found = matrices(model)
    return sensitivities(model, TASK, found, calibration, probes, bits=BITS, group_size=32, emit=ignore), found


def test_parts_are_what_readers_fuse(model: LlamaForCausalLM, probes: list[Batch]) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts, _ = measured(model, probes)
    layer = "model.layers.0."
    assert [tuple(name.removeprefix(layer) for name in part.names) for part in parts[:4]] == [
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        ("self_attn.o_proj.weight",),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        ("mlp.down_proj.weight",),
    ]
    assert len(parts) == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_more_bits_cost_more_bytes_and_less_kl(model: LlamaForCausalLM, probes: list[Batch]) -> None:
    parts, _ = measured(model, probes)
    for part in parts:
        assert [*part.bits_bytes.values()] == sorted(part.bits_bytes.values())
        assert [*part.bits_kl.values()] == sorted(part.bits_kl.values(), reverse=True)


def test_the_sum_foretells_the_whole(model: LlamaForCausalLM, probes: list[Batch]) -> None:
    parts, found = measured(model, probes)
    dense = [scored(model, TASK, batch) for batch in probes]
    kept = {name: matrix.read() for name, matrix in found.items()}
    for name, weight_OI in kept.items():
        grid = Grid(4, 32)
        found[name].write(nearest(weight_OI, widest(weight_OI, grid), grid).dequantized())
    whole = mean_kl(model, TASK, probes, dense)
    for name, weight_OI in kept.items():
        matrix: Matrix = found[name]
        matrix.write(weight_OI)
    assert sum(part.bits_kl[4] for part in parts) == pytest.approx(whole, rel=0.6)
