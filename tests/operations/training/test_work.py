"""What a sample costs: counted as torch's own counter of operations does, whatever the layers are; and what the plan makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmos_cli.models.build import build
from llmos_cli.operations.training.work import Work, of_sample
from llmos_cli.options.model import ModelOptions
from tests.operations.training.test_hidden import IMAGES, LM, TEXTS

IDS = {"input_ids": torch.arange(2 * 16).reshape(2, 16) % 20}
PIXELS = {"pixel_values": torch.ones(2, 1, 8, 8)}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def model(task: str, facts: dict[str, Any], **options: Any) -> torch.nn.Module:
    return build(ModelOptions(**options), task, {**facts, "sequence_length": 16}, seed=0)


@pytest.mark.parametrize(
    ("task", "facts", "options", "batch"),
    [
        ("causal-lm", LM, {"arch": "llama", **SMALL}, IDS),
        ("text-classification", TEXTS, {"arch": "bert", **SMALL}, IDS),
        ("image-classification", IMAGES, {"arch": "cnn", "channels": [4, 8]}, PIXELS),
        ("image-classification", IMAGES, {"arch": "mlp", "hidden_size": 32}, PIXELS),
    ],
)
def test_products_are_those_that_torch_counts(task, facts, options, batch):
    made = model(task, facts, **options).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        made(**batch)
    attention = sum(
        count for operation, count in counted.get_flop_counts()["Global"].items() if "attention" in str(operation)
    )
    assert of_sample(made, batch).products == (counted.get_total_flops() - attention) / 2 / 2


def test_an_lstm_multiplies_both_of_its_matrices_at_every_step():
    made = model("text-classification", TEXTS, arch="lstm", embedding_size=8, hidden_size=4)
    each_way, head = 16 * (16 * 8 + 16 * 4), 3 * 16
    assert of_sample(made, IDS).products == 2 * each_way + head


def test_outputs_are_what_layers_put_out_below_the_head():
    made = model("image-classification", IMAGES, arch="mlp", hidden_size=4, num_hidden_layers=1, dropout=0.0)
    hidden = next(module for module in made.modules() if isinstance(module, torch.nn.Linear))
    one = of_sample(made, PIXELS)
    assert isinstance(one, Work) and one.products == 64 * 4 + 4 * 3
    assert one.outputs % hidden.out_features == 0 and one.outputs >= hidden.out_features


def test_counting_leaves_the_model_as_it_was():
    made = model("text-classification", TEXTS, arch="bert", **SMALL).train()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    of_sample(made, IDS)
    assert made.training and not any(module._forward_hooks for module in made.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


@pytest.mark.parametrize(
    ("template", "products"),
    [("text-classification", 20 * 2 * (4 * 32 * 32 + 2 * 32 * 64)), ("image-classification", 8 * 8 * 3 * 3 * 16)],
)
def test_a_classifier_is_planned_with_all_that_it_reads(
    template, products, new_workspace, tmp_path, monkeypatch, llmos
):
    """It scores one position of a sample and computes on each; `products`: at least so many in a sample, by hand."""
    monkeypatch.chdir(new_workspace(tmp_path / "w", template).root)
    monkeypatch.setattr("llmos_cli.device.speed", lambda *_: [1e9])
    planned = llmos("train", "--dry-run", "--json", "-q").json
    assert planned["positions"] == 1
    samples = planned["epochs"] * planned["samples"]
    assert planned["seconds"] > 6 * products * samples / 0.5e9
