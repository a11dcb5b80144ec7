"""`train.quantize`: what is trained is what the file holds, to the bit; zeros stay, runs resume, and what cannot be trained so is refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.grid import Grid
from llmos_cli.models.build import build
from llmos_cli.models.load import load
from llmos_cli.models.matrices import Matrix, matrices
from llmos_cli.operations import lineage
from llmos_cli.operations.training.rounding import Fake, rounding, straight, write
from llmos_cli.options.model import ModelOptions
from llmos_cli.options.verbs import RoundedOptions
from tests.conftest import Llmos
from tests.models.conftest import FACTS, batch
from tests.operations.test_train import hashes, killed, resume, trained, weights

THREE = ("train.quantize.bits=3", "train.quantize.group_size=16")


def fake(weight_OI: torch.Tensor, grid: Grid) -> tuple[nn.Linear, Fake]:
    layer = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight_OI)
    return layer, Fake(Matrix("layer.weight", "layer", layer, layer.weight.shape), grid)


def test_gradients_are_those_of_the_paper() -> None:
    """LSQ, equation 3: to a weight 1 within the range and 0 beyond, to a scale round(w/s) - w/s within and the end beyond."""
    layer, parametrization = fake(torch.tensor([[0.9, -0.3, 5.0, -5.0]]), Grid(3, 4))
    parametrization.scale_OG.fill_(1.0)
    out_OI = parametrization(layer.weight)
    assert out_OI.tolist() == [[1.0, -0.0, 3.0, -4.0]]
    toward_OI = torch.tensor([[2.0, 3.0, 5.0, 7.0]])
    (out_OI * toward_OI).sum().backward()
    assert layer.weight.grad is not None and parametrization.factor_N.grad is not None
    assert layer.weight.grad.tolist() == [[2.0, 3.0, 0.0, 0.0]]
    of_scale = 2 * (1 - 0.9) + 3 * (0 + 0.3) + 5 * 3 + 7 * -4
    pace = (4 * 3) ** -0.5
    assert float(parametrization.factor_N.grad) == pytest.approx(of_scale * pace, rel=1e-5)


@given(st.lists(st.floats(-127.5, 127.5, width=32, allow_subnormal=False), min_size=1, max_size=40))
@settings(deadline=None)
def test_a_number_passed_straight_is_exactly_the_rounded_one(numbers: list[float]) -> None:
    exact = torch.tensor(numbers)
    assert torch.equal(straight(exact, exact.round()), exact.round())
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(straight(exact, exact.to(dtype).float()), exact.to(dtype).float())


@pytest.mark.parametrize(
    ("arch", "task"),
    [
        ("llama", "causal-lm"),
        ("bert", "text-classification"),
        ("eurobert", "token-classification"),
        ("vit", "image-classification"),
        ("mlp", "image-classification"),
        ("cnn", "image-classification"),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_trained_is_what_is_loaded(
    arch: str, task: str, symmetric: bool, tmp_path: Path, workspace: Workspace
) -> None:
    """Bit for bit, after steps that move weights and scales, in the type that they are stored in."""
    options = RoundedOptions(bits=3, group_size=16, symmetric=symmetric)
    model = build(ModelOptions(arch=arch), task, FACTS[task], seed=0)
    names = list(matrices(model))
    with rounding(model, options, torch.bfloat16) as rounded:
        assert list(rounded.fakes) == names
        learner = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            learner.zero_grad()
            model(**batch(task)).logits.square().mean().backward()
            learner.step()
        assert all((entry.factor_N != 1).any() for entry in rounded.fakes.values())
        used = {name: entry.matrix.layer.weight.detach().clone() for name, entry in rounded.fakes.items()}
        logits = model.eval()(**batch(task)).logits
    assert [name for name, _ in model.named_modules() if "parametrizations" in name] == []
    assert torch.equal(model(**batch(task)).logits, logits)
    write(workspace, model, rounded, tmp_path / "out", dtype=torch.bfloat16, processor=None)
    again = dict(load(tmp_path / "out").named_parameters())
    assert all(torch.equal(again[name], value) for name, value in used.items())


def test_without_bits_nothing_is_touched() -> None:
    model = build(ModelOptions(arch="llama"), "causal-lm", FACTS["causal-lm"], seed=0)
    before = [name for name, _ in model.named_parameters()]
    with rounding(model, RoundedOptions(), torch.bfloat16) as rounded:
        assert [name for name, _ in model.named_parameters()] == before
    assert not rounded.codes


def test_a_quantized_checkpoint_is_what_training_leaves(workspace: Workspace, llmos: Llmos) -> None:
    parent = trained(workspace).checkpoint
    result = trained(workspace, "HEAD", *THREE, "train.teacher=HEAD", "train.teacher_weight=1")
    config = workspace.checkpoint().config_json()
    told = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (told["num_bits"], told["group_size"]) == (3, 16)
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    for name, matrix in matrices(load(workspace.checkpoint().path)).items():
        groups = matrix.read().unflatten(1, (-1, 16)).flatten(0, 1)
        assert all(len(row.unique()) <= 8 for row in groups), name
    assert result.metrics["test"]["bits_per_byte"] > 0
    assert lineage.uncompressed(workspace, result.checkpoint).id == parent
    assert llmos("quantize").code == 2
    assert llmos("fsck").code == 0
    again = llmos("train", "HEAD", "-s", "train.max_steps=1")
    assert again.code == 0 and "is quantized, and what comes of this training is not" in again.err
    assert "quantization_config" not in workspace.checkpoint().config_json()


def test_a_killed_run_is_resumed_to_the_same_codes(workspace: Workspace) -> None:
    sets = (*THREE, "train.max_steps=6", "train.optimizer=muon")
    killed(workspace, signal.SIGINT, *sets)
    resume(workspace, None, emit=lambda event: None)
    resumed = hashes(workspace)
    trained(workspace, None, *sets)
    assert hashes(workspace) == resumed


def test_zeros_of_a_pruned_parent_stay(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace)
    assert llmos("prune", "--method", "magnitude", "--sparsity", "0.5").code == 0
    pruned = weights(workspace)
    names = [f"{name}" for name in matrices(load(workspace.checkpoint().path))]
    trained(workspace, "HEAD", *THREE, "train.learning_rate=0.05")
    after = weights(workspace)
    for name in names:
        assert not after[name][pruned[name] == 0].any()
        assert not torch.equal(after[name], pruned[name])


def test_an_lstm_is_refused_before_anything_is_trained(workspace: Workspace, llmos: Llmos) -> None:
    for more in ([], ["--dry-run"]):
        ran = llmos("train", "-s", "model={arch: lstm, hidden_size: 16}", "-s", "train.quantize.bits=4", *more)
        assert ran.code == 2 and "no weight of a lstm can be trained as codes" in ran.err.lower(), ran.err


def test_cross_validation_rounds_too(workspace: Workspace, llmos: Llmos) -> None:
    trained(workspace, None, *THREE)
    ran: Any = llmos("eval", "-s", "eval.folds=2", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)
