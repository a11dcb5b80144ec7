"""`llmos prune --method fisher` and `movement`, and what every pruning method does with every kind of task and with hostile parents."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.patterns import Target
from llmos_cli.methods.prune import movement
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.models.rewrite import rewrite
from llmos_cli.operations.compression.saliency import Moving, _own_loss, empirical_fisher, first_order
from llmos_cli.operations.compression.subject import calibration, method, subject
from llmos_cli.operations.config import resolve
from llmos_cli.tasks.scoring import cross_entropy, forward
from tests.operations.conftest import Base

TEXT = "sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}"
LSTM = f"""\
model: {{arch: lstm, hidden_size: 16, embedding_size: 16, num_hidden_layers: 1}}
data: {{task: token-classification, source: "builtin:pytokens", {TEXT}}}
train: {{max_steps: 4, batch_size: 8}}
"""
GROUPED = f"""\
model: {{arch: qwen2, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: true}}
data: {{task: causal-lm, source: "builtin:pydoc", {TEXT}}}
train: {{max_steps: 2, batch_size: 4}}
"""
FAMILIES = {
    "causal-lm": ("causal-lm", ""),
    "text-classification": ("text-classification", ""),
    "image-classification": ("image-classification", ""),
    "lstm": ("token-classification", LSTM),
}
QUICK = ("-s", "prune.movement.steps=3", "-s", "prune.calibration_samples=8", "-s", "data.max_eval_samples=4")


def quick(method: str) -> tuple[str, ...]:
    return ("--method", method, *(QUICK if method == "movement" else QUICK[2:]))


def zeros(ws: Workspace) -> float:
    found = [matrix.read() for matrix in matrices(load(ws.checkpoint().path)).values()]
    return sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found)


@pytest.mark.parametrize(
    "family",
    [
        family if family == "image-classification" else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_method_on_every_kind_of_task(base: Base, llmos: Any, family: str) -> None:
    ws = base(*FAMILIES[family])
    root = ws.resolve()
    for name in ("magnitude", "wanda", "sparsegpt", "fisher", "movement"):
        ran = llmos("prune", root, *quick(name), "--sparsity", "0.5", "--heal", "1", "--json")
        assert ran.code == 0, (name, ran.err)
        assert zeros(ws) == pytest.approx(0.5, abs=0.02), name
        assert ran.json["proof"]["parity"]["difference"] < 1e-3, name


@pytest.mark.parametrize("name", ["fisher", "movement"])
def test_n_of_m_and_zeros_that_were_there(base: Base, llmos: Any, name: str) -> None:
    ws = base()
    ran = llmos("prune", *quick(name), "--pattern", "2:4")
    assert ran.code == 0, ran.err
    for matrix in matrices(load(ws.checkpoint().path)).values():
        assert ((matrix.read() != 0).unflatten(1, (-1, 4)).sum(2) <= 2).all()
    before = {key: matrix.read() == 0 for key, matrix in matrices(load(ws.checkpoint().path)).items()}
    again = llmos("prune", *quick(name), "--sparsity", "0.6")
    assert again.code == 0, again.err
    for key, matrix in matrices(load(ws.checkpoint().path)).items():
        assert not matrix.read()[before[key]].any(), key
    assert zeros(ws) == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("family", ["causal-lm", "lstm", "image-classification"])
def test_the_empirical_fisher_is_the_mean_of_squared_gradients(base: Base, family: str) -> None:
    ws = base(*FAMILIES[family])
    found = subject(ws, ws.checkpoint(), resolve(ws, "prune"), [], emit=lambda event: None)
    batches = calibration(found, 5, set(), labelled=True, seed=0).labelled
    fisher = empirical_fisher(found, batches, lambda event: None)
    expected = {name: torch.zeros_like(matrix.read()) for name, matrix in found.matrices.items()}
    for batch in batches:
        for row in range(len(batch["labels"])):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            found.model.zero_grad()
            scored = found.exam.task.scored(forward(found.model, one), one)
            (cross_entropy(scored) * len(scored.labels_N)).backward()
            for name, matrix in found.matrices.items():
                expected[name] += matrix.flat(matrix.parameter.grad).square() / 5
    for name in expected:
        torch.testing.assert_close(fisher[name], expected[name], rtol=1e-3, atol=1e-6)


def test_a_masked_weight_comes_back_with_the_value_that_it_had(base: Base) -> None:
    ws = base()
    resolved = resolve(ws, "prune", flags={"prune.method": "movement"})
    found = subject(ws, ws.checkpoint(), resolved, [], emit=lambda event: None)
    module, _ = method("prune", resolved.config.prune)
    name, matrix = next(iter(found.matrices.items()))
    moving = Moving({name: matrix}, module, movement.Options(rising=0.1, steps=10), Target(0.5))
    whole_OI = matrix.read()
    moving.after_step(0.5)
    gone_OI = matrix.read() == 0
    assert float(gone_OI.float().mean()) == 0.5
    # What went is pulled outwards, what stayed inwards: they change places.
    matrix.parameter.grad = matrix.shaped(torch.where(gone_OI, -whole_OI.sign(), whole_OI.sign()) * 1e3).clone()
    for _ in range(20):
        kept = matrix.parameter.grad.clone()
        moving.before_step()
        assert not matrix.flat(matrix.parameter.grad)[gone_OI].any(), "what is masked feels no gradient"
        matrix.parameter.grad = kept
    moving.after_step(1.0)
    back_OI = matrix.read()
    assert (back_OI[gone_OI] == whole_OI[gone_OI]).float().mean() > 0.9
    moving.let_go()
    assert torch.equal(matrix.read(), whole_OI)


def hostile(ws: Workspace, change: Any) -> None:
    parent = ws.checkpoint()
    model = load(parent.path)
    with torch.no_grad():
        change(model)
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        rewrite(model, parent.path, staged)
        run.commit(staged, parent.manifest.made)


def dead(model: Any) -> None:
    """A channel that is never alive: nothing writes it, and its readers' Hessian is zero there."""
    model.model.layers[0].mlp.up_proj.weight[5] = 0
    model.model.layers[1].mlp.up_proj.weight.zero_()
    model.model.layers[1].self_attn.v_proj.weight.zero_()
    if model.model.layers[1].self_attn.v_proj.bias is not None:
        model.model.layers[1].self_attn.v_proj.bias.zero_()


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "fisher", "movement", "width"])
def test_dead_channels_zero_hessians_ties_groups_biases_and_one_sample(base: Base, llmos: Any, name: str) -> None:
    ws = base("causal-lm", GROUPED)
    hostile(ws, dead)
    sparsity = "0.2" if name == "width" else "0.5"
    ran = llmos("prune", *quick(name), "--sparsity", sparsity, "-s", "prune.calibration_samples=1", "--heal", "1")
    assert ran.code == 0, ran.err
    model = load(ws.checkpoint().path)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "fisher", "movement", "width"])
def test_weights_that_are_not_finite_are_refused(base: Base, llmos: Any, name: str) -> None:
    ws = base()

    def spoil(model: Any) -> None:
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan

    hostile(ws, spoil)
    before = ws.resolve()
    ran = llmos("prune", *quick(name), "--sparsity", "0.3")
    assert ran.code == 1 and "not finite" in ran.err, ran.err
    assert ws.resolve() == before


@pytest.mark.parametrize("family", ["causal-lm", "image-classification", "lstm"])
def test_a_move_is_the_slope_of_the_loss_along_a_gate_on_the_input(base: Base, family: str) -> None:
    """Derived another way: every input of a matrix times a gate of one, and the loss's gradient to the gate."""
    ws = base(*FAMILIES[family])
    found = subject(ws, ws.checkpoint(), resolve(ws, "prune"), [], emit=lambda event: None)
    name, matrix = next(iter(found.matrices.items()))
    (batch,) = calibration(found, 2, {"norms"}, seed=0).batches
    moves_SI = first_order(found.model, {name: matrix}, [batch])[name]
    assert moves_SI.shape == (2, matrix.inputs) and moves_SI.abs().sum() > 0

    gate_I = torch.ones(matrix.inputs, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    own = dict(found.model.named_parameters())
    for row in range(2):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        gated = {name: matrix.shaped(matrix.read() * gate_I)}
        logits = torch.func.functional_call(found.model, own | gated, (), one).logits.float()
        (slope_I,) = torch.autograd.grad(_own_loss(logits, one.get("attention_mask"), generator), gate_I)
        torch.testing.assert_close(moves_SI[row], slope_I, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_units_by_other_importances(base: Base, llmos: Any, importance: str) -> None:
    base("image-classification")
    ran = llmos("prune", "--method", "width", "--sparsity", "0.2", "-s", f"prune.width.importance={importance}")
    assert ran.code == 0, ran.err
    assert "parameters gone" in ran.out
