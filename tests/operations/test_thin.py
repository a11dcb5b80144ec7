"""`hidden` of `prune --method width`: what is fitted is what least squares give, and a plain model of a smaller `hidden_size` comes out."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_cli.events import ignore
from llmos_cli.methods.prune import width
from llmos_cli.models.residual import channels, thinned
from llmos_cli.operations.compression.thin import Fitting, ranking_of, refit, scales, thin
from tests.models.conftest import batch
from tests.models.test_channels import SHARED, logits_of, model_of
from tests.operations.conftest import Base
from tests.operations.test_structured import GROUPED, config_of, size_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_matrix_is_fitted_as_least_squares_would() -> None:
    x_NI, x_NJ, whole_OJ, start_OI = drawn(50, 6), drawn(50, 9, seed=1), drawn(4, 9, seed=2), drawn(4, 6, seed=3)
    hessian_II = x_NI.T @ x_NI
    found_OI = refit(start_OI, whole_OJ, hessian_II, x_NI.T @ x_NJ, 0.1)
    pull = (0.1 * hessian_II.diagonal().mean()).sqrt()
    rows = torch.cat([x_NI, pull * torch.eye(6, dtype=torch.float64)])
    wanted = torch.cat([x_NJ @ whole_OJ.T, pull * start_OI.T])
    torch.testing.assert_close(found_OI, torch.linalg.lstsq(rows, wanted).solution.T)


def test_a_norm_is_scaled_as_least_squares_would() -> None:
    x_NK, x_ND, whole_OD = drawn(50, 5), drawn(50, 8, seed=1), drawn(7, 8, seed=2)
    part_OK = whole_OD[:, :5]
    found_K = scales(part_OK, whole_OD, x_NK.T @ x_NK, x_NK.T @ x_ND, 1e-9)
    rows = (x_NK[:, None, :] * part_OK).flatten(0, 1)  # one row for each logit
    torch.testing.assert_close(found_K, torch.linalg.lstsq(rows, (x_ND @ whole_OD.T).flatten()[:, None]).solution[:, 0])


def inputs_of(model: Any, layer: str, batches: list[dict[str, Tensor]]) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for each in batches:
            model(**each)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_is_fitted_to_the_whole_model_on_what_the_fitted_ones_before_it_give(tied: bool) -> None:
    """Once all is done a matrix's inputs are those it was fitted on: so each is checked afterwards, on full forward passes."""
    model = model_of("llama", "causal-lm", {**SHARED, "tie_word_embeddings": tied})
    batches = [batch("causal-lm", rows=3)]
    found = channels(model, batches[0])
    kept_D = torch.arange(48) % 4 != 0
    smaller = thinned(model, found, kept_D)
    starts = {name: value.clone() for name, value in smaller.state_dict().items()}
    own = width.Options(damping=0.05)
    Fitting(model, smaller, found, kept_D, own, batches).carried_out(ignore)
    for name in (
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.o_proj",
        "layers.2.mlp.up_proj",
        "layers.2.mlp.down_proj",
    ):
        x_NI, x_NJ = (inputs_of(each, f"model.{name}", batches) for each in (smaller, model))
        weight = model.get_submodule(f"model.{name}").weight.detach()
        whole = weight[kept_D] if "o_proj" in name or "down" in name else weight
        wanted = refit(starts[f"model.{name}.weight"], whole, x_NI.T @ x_NI, x_NI.T @ x_NJ, 0.05)
        torch.testing.assert_close(smaller.get_submodule(f"model.{name}").weight.detach(), wanted, rtol=1e-3, atol=1e-3)
    before, whole_logits = logits_of(thinned(model, found, kept_D), "causal-lm"), logits_of(model, "causal-lm")
    after = logits_of(smaller, "causal-lm")
    assert (after - whole_logits).square().mean() < 0.7 * (before - whole_logits).square().mean()


@pytest.mark.parametrize("importance", ["error", "activation", "taylor"])
def test_channels_that_nothing_writes_to_go_first(importance: str) -> None:
    model = model_of("llama", "causal-lm", SHARED)
    idle = torch.tensor([3, 17, 40, 41])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[idle] = 0
            if name.endswith("embed_tokens.weight"):
                parameter[:, idle] = 0
    batches = [batch("causal-lm")]
    ranking = ranking_of(model, channels(model, batches[0]), width, width.Options(importance=importance), batches)
    assert set(ranking.order_N[:4].tolist()) == set(idle.tolist())


def test_an_ignored_layer_keeps_the_stream_as_it_is() -> None:
    model, own = model_of("llama", "causal-lm", SHARED), SimpleNamespace(damping=0.01)
    with pytest.raises(Exception, match="ignored, as the config says"):
        thin(model, width, own, share=0.2, ignore=["*.1.mlp.*"], batches=[batch("causal-lm")], emit=ignore)  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [1, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["width", pytest.param("shape", marks=pytest.mark.slow)])
def test_a_model_of_a_narrower_stream_is_proven_by_plain_transformers(
    base: Base, llmos: Any, hidden: float, method: str
) -> None:
    ws = base("causal-lm", GROUPED)
    ran = llmos(
        "prune", "--method", method, "--sparsity", "0.25", "--heal", "2", "-s", f"prune.{method}.hidden={hidden}", "--json"
    )  # fmt: skip
    assert ran.code == 0, ran.err
    config = config_of(ws)
    assert config["hidden_size"] in (24, 28) and config["head_dim"] == 8
    assert 0.2 <= 1 - size_of(ws) / size_of(ws, "HEAD~1") < 0.36
    assert ran.json["proof"]["parity"]["reader"].startswith("transformers")
    assert json.loads(ran.out)["reached"].count("hidden_size 32 -> ") == 1
    again = llmos("quantize", "--group-size", "8", "-q")
    assert again.code == 0, again.err


def test_an_architecture_without_such_a_width_is_refused(base: Base, llmos: Any) -> None:
    base("text-classification")
    refused = llmos("prune", "--method", "width", "--sparsity", "0.1", "-s", "prune.width.hidden=1")
    assert refused.code == 2 and "the residual stream of a bert cannot be made narrower" in refused.err
