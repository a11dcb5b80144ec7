"""Weights that stay in their files: what is looked up, multiplied or asked otherwise is what the loaded weight would give."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from llmos_cli.models import headers, on_file
from llmos_cli.models.on_file import OnFile
from llmos_cli.models.rewrite import DTYPES


def stored(
    folder: Path, dtype: torch.dtype, rows: int = 37, columns: int = 5, before: int = 3
) -> tuple[OnFile, Tensor]:
    """A weight whose bytes begin anywhere in a word, and what it is in memory."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
    save_file({"a": torch.zeros(before, dtype=torch.uint8), "weight": weight}, folder / "one.safetensors")
    return OnFile(headers.of_file(folder / "one.safetensors")["weight"]), weight.float()


@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(list(DTYPES.values())),
    rows=st.integers(1, 40),
    columns=st.integers(1, 9),
    before=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_rows_are_looked_up_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, rows: int, columns: int, before: int, seed: int
) -> None:
    lying, weight = stored(tmp_path_factory.mktemp("file"), dtype, rows, columns, before)
    ids = torch.randint(0, rows, (2, 3), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(F.embedding(ids, lying), F.embedding(ids, weight))


@pytest.mark.parametrize("stripe", [5, 40, 1000])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_head_is_multiplied_stripe_by_stripe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stripe: int, autocast: bool
) -> None:
    monkeypatch.setattr(on_file, "STRIPE", stripe)
    monkeypatch.delattr(on_file, "_read")  # which would read all of it
    lying, weight = stored(tmp_path, torch.bfloat16)
    inputs, bias = torch.randn(2, 4, 5), torch.randn(37)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, wanted = F.linear(inputs, lying, bias), F.linear(inputs, weight, bias)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted)


def test_to_the_model_it_is_a_parameter_like_any_other(tmp_path: Path) -> None:
    lying, weight = stored(tmp_path, torch.float16)
    embedding, head = nn.Embedding(37, 5), nn.Linear(5, 37, bias=False)
    embedding.weight = head.weight = nn.Parameter(lying, requires_grad=False)
    held = embedding.get_parameter("weight")
    assert isinstance(held, nn.Parameter) and held.shape == (37, 5) and held.dtype == torch.float32
    assert {**embedding.state_dict(keep_vars=True)}["weight"] is {**head.state_dict(keep_vars=True)}["weight"]
    ids = torch.tensor([[0, 36, 4]])
    with torch.no_grad():
        torch.testing.assert_close(head(embedding(ids)), F.linear(F.embedding(ids, weight), weight))
    assert held.to("meta").is_meta and torch.equal(held.detach().float(), weight)
    assert torch.equal(held[3:5], weight[3:5]) and torch.equal(torch.cat([held, weight]), torch.cat([weight, weight]))


def test_the_file_is_not_written_to(tmp_path: Path) -> None:
    lying, weight = stored(tmp_path, torch.float32)
    with pytest.raises(RuntimeError, match="is not this process's to write to"):
        lying.add_(1)
    assert torch.equal(torch.zeros(37, 5).copy_(lying), weight), "others are, from it"


def test_tokens_that_there_are_not_are_refused_as_torch_does(tmp_path: Path) -> None:
    lying, _ = stored(tmp_path, torch.float32)
    for token in (-1, 37):
        with pytest.raises(IndexError):
            F.embedding(torch.tensor([token]), lying)


def test_called_by_names(tmp_path: Path) -> None:
    lying, weight = stored(tmp_path, torch.float32)
    ids, inputs = torch.tensor([1, 2]), torch.randn(3, 5)
    assert torch.equal(F.embedding(input=ids, weight=lying), F.embedding(ids, weight))
    torch.testing.assert_close(F.linear(input=inputs, weight=lying), F.linear(inputs, weight))
