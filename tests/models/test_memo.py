"""Parts of a block that are final compute once a batch: the same sums, from fewer products."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llmos_cli.models.activations import Spill
from llmos_cli.models.blocks import layers
from llmos_cli.models.calibrate import sequential
from llmos_cli.models.memo import Ending, ending
from llmos_cli.models.statistics import Need, Statistics, add_gram

EVERYTHING: Collection[Need] = {"hessian", "drift"}
TOKENS = [{"input_ids": torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(n))} for n in range(3)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def hessians(model: LlamaForCausalLM, spill: Spill, needs: Collection[Need] = EVERYTHING) -> dict[str, Tensor]:
    """Of a model whose matrices are rounded as they come."""
    model, found = copy.deepcopy(model), dict[str, Tensor]()
    parameters = dict(model.named_parameters())

    def visit(statistics: Mapping[str, Statistics]) -> None:
        for name, seen in statistics.items():
            found[name] = seen.hessian_II.clone()
            parameters[name].data = (parameters[name] * 16).round() / 16

    sequential(model, TOKENS, visit, layers=layers(model), needs=needs, spill=spill)
    return found


def test_what_is_known_changes_nothing(model: LlamaForCausalLM, tmp_path: Path) -> None:
    known, computed = hessians(model, Spill()), hessians(model, Spill(0, tmp_path))
    assert list(known) == list(computed)
    assert all(torch.equal(known[name], computed[name]) for name in known)


@pytest.mark.parametrize(("needs", "streams"), [(EVERYTHING, 2), ({"hessian"}, 1)])
def test_each_layer_computes_once_in_each_stream(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, needs: Collection[Need], streams: int
) -> None:
    products = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *given: (products.append(given), linear(*given))[1])
    hessians(model, Spill(), needs)
    whole_model = 7 * 2 + 1  # by which it is checked that the blocks run once and in order
    last = 1  # down_proj of the last block: nothing comes after it
    assert len(products) == whole_model + len(TOKENS) * (streams * 7 * 2 - last)


@pytest.mark.parametrize(("needs", "streams"), [(EVERYTHING, 2), ({"hessian"}, 1)])
def test_attention_computes_once_in_each_stream(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, needs: Collection[Need], streams: int
) -> None:
    """Though it ends with a layer that is changed only after its inputs were measured."""
    seen = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **more: (seen.append(0), attend(*given, **more))[1]
    )
    hessians(model, Spill(), needs)
    assert len(seen) == 2 * (1 + streams * len(TOKENS))


class Ends(nn.Module):
    """Parts that end with a layer's answer, but not as it was, or not alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)).add_(x)


class Twice(Ends):
    def forward(self, x: Tensor) -> Any:
        answer = self.last(self.first(x))
        return answer, x, None


class Plain(Ends):
    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x)), None


@pytest.mark.parametrize(("part", "ends"), [(Ends, False), (Twice, False), (Plain, True)])
def test_a_part_ends_with_a_layer_where_it_answers_with_the_very_tensor(part: type[nn.Module], ends: bool) -> None:
    block = nn.Sequential(part())
    with torch.no_grad(), ending(block, "block") as found:
        block(torch.ones(1, 4))
    assert found == ({"block.0": Ending("block.0.last", (True, None))} if ends else {})


@pytest.mark.parametrize("width", [1, 3, 4, 7, 64])
def test_half_a_gram_matrix_is_the_whole(width: int) -> None:
    rows_NI = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    sum_II = torch.eye(width)
    add_gram(sum_II, rows_NI)
    torch.testing.assert_close(sum_II, torch.eye(width) + rows_NI.T @ rows_NI)
    assert torch.equal(sum_II, sum_II.T)
