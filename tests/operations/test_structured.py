"""`llmos prune --method width` and `depth` on tiny trained models: plain smaller ones come out, that load anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.prune import shape
from llmos_cli.models.blocks import blocks
from llmos_cli.models.load import load
from llmos_cli.models.narrow import Group, Slice, Width
from llmos_cli.models.shallow import shortened
from llmos_cli.operations.compression.missing import least_missed
from llmos_cli.operations.compression.ranking import power_law
from llmos_cli.operations.compression.reshape import apart
from llmos_cli.operations.compression.share import Choice, share
from tests.operations.conftest import Base

TEXT = "sequence_length: 32, max_samples: 64, max_eval_samples: 8, tokenizer: {vocab_size: 300}"
GROUPED = f"""\
model: {{arch: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: true}}
data: {{task: causal-lm, source: "builtin:pydoc", {TEXT}}}
train: {{max_steps: 4, batch_size: 4}}
"""
LSTM = f"""\
model: {{arch: lstm, hidden_size: 32, embedding_size: 16, num_hidden_layers: 2}}
data: {{task: token-classification, source: "builtin:pytokens", {TEXT}}}
train: {{max_steps: 4, batch_size: 8}}
"""
MLP = """\
model: {arch: mlp, hidden_size: 64}
data: {task: image-classification, source: "builtin:digits", max_samples: 128, max_eval_samples: 64}
train: {max_steps: 4, batch_size: 16}
"""


@pytest.fixture
def grouped(base: Base) -> Base:
    """`base`, of a model whose query heads share key-value heads unless told otherwise."""
    return lambda template="causal-lm", config=GROUPED: base(template, config)


def config_of(ws: Workspace, rev: str = "HEAD") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ws.checkpoint(rev).path / "config.json").read_text())
    return found


def size_of(ws: Workspace, rev: str = "HEAD") -> int:
    return sum(parameter.numel() for parameter in load(ws.checkpoint(rev).path).parameters())


def test_a_narrower_language_model_is_healed_served_and_quantized(grouped: Base, llmos: Any) -> None:
    ws = grouped()
    ran = llmos(
        "prune", "--method", "width", "--sparsity", "0.3", "--heal", "2", "-s", "heal.hidden_weight=0.1", "--json"
    )
    assert ran.code == 0, ran.err
    before, after = config_of(ws, "HEAD~1"), config_of(ws)
    assert 0.3 <= 1 - size_of(ws) / size_of(ws, "HEAD~1") < 0.36
    assert after["intermediate_size"] < before["intermediate_size"]
    assert {key for key in before if before[key] != after[key]} <= {
        "intermediate_size", "num_attention_heads", "num_key_value_heads",
    }  # fmt: skip
    assert ran.json["proof"]["parity"]["reader"].startswith("transformers")
    assert ran.json["proof"]["bytes_after"]["total"] < 0.75 * ran.json["proof"]["bytes_before"]["total"]
    assert f"of {size_of(ws, 'HEAD~1'):,} parameters gone (intermediate_size 64 -> " in ran.json["reached"]
    assert ("parameters", "") in {(name, split or "") for name, split in ws.metrics(ws.resolve())}

    said = llmos("generate", "--prompt", "def", "--max-tokens", "3")
    assert said.code == 0, said.err
    again = llmos("quantize", "--group-size", "16")
    assert again.code == 0, again.err


def test_a_shallower_language_model(grouped: Base, llmos: Any) -> None:
    ws = grouped()
    ran = llmos("prune", "--method", "depth", "--sparsity", "0.2", "--json")
    assert ran.code == 0, ran.err
    assert config_of(ws)["num_hidden_layers"] == 2
    assert ran.json["changed"] == 1
    assert "2 of 3 blocks left, without" in ran.json["reached"]
    weighed = [ran.json["proof"][when]["layers"] for when in ("bytes_before", "bytes_after")]
    assert weighed[1] * 3 == weighed[0] * 2, "of each model its own layers"


@pytest.mark.parametrize(
    ("template", "config", "key"),
    [
        pytest.param("text-classification", "", "intermediate_size", marks=pytest.mark.slow),
        pytest.param("token-classification", LSTM, "hidden_size", marks=pytest.mark.slow),
        ("image-classification", "", "channels"),
        pytest.param("image-classification", MLP, "hidden_size", marks=pytest.mark.slow),
    ],
)
def test_every_task_has_something_to_cut(grouped: Base, llmos: Any, template: str, config: str, key: str) -> None:
    ws = grouped(template, config)
    ran = llmos("prune", "--method", "width", "--sparsity", "0.1", "--heal", "1", "--json")
    assert ran.code == 0, ran.err
    assert config_of(ws)[key] != config_of(ws, "HEAD~1")[key]
    assert size_of(ws) <= 0.9 * size_of(ws, "HEAD~1")


@pytest.mark.parametrize(
    ("sparsity", "heal"), [("0.04", ["--heal", "2"]), pytest.param("0.5", [], marks=pytest.mark.slow)]
)
def test_zeros_of_the_parent_stay_zeros(grouped: Base, llmos: Any, sparsity: str, heal: list[str]) -> None:
    """However few a matrix has: of each, what is left of the units is as zero as it was."""
    ws = grouped()
    assert llmos("prune", "--method", "magnitude", "--sparsity", sparsity).code == 0
    before = {name: parameter == 0 for name, parameter in load(ws.checkpoint().path).named_parameters()}
    ran = llmos("prune", "--method", "width", "--sparsity", "0.2", *heal)
    assert ran.code == 0, ran.err
    after = {name: parameter == 0 for name, parameter in load(ws.checkpoint().path).named_parameters()}
    cut = [name for name in after if "_proj" in name and after[name].shape != before[name].shape]
    assert cut and all(before[name].any() for name in cut)
    for name in (name for name in after if "_proj" in name):
        turned = after[name].shape[0] == before[name].shape[0]
        was, is_ = (mask.T if turned else mask for mask in (before[name], after[name]))
        units = iter(was.tolist())
        assert all(any(old == unit for old in units) for unit in is_.tolist()), f"{name}: zeros came or went"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["--pattern", "2:4"], 2, "cuts whole units out"),
        (["--sparsity", "0"], 2, "takes nothing away"),
        (["--sparsity", "0.9"], 2, "of the parameters are in intermediate_size"),
        (["-s", "prune.ignore=['*']"], 2, "ignored, as the config says"),
        (["--method", "depth", "--sparsity", "0.97"], 2, "not one block would be left"),
        (["--method", "depth", "--sparsity", "0.01"], 2, "of the parameters, and 1.0% are to go"),
    ],
)
def test_what_cannot_be(grouped: Base, llmos: Any, command: list[str], code: int, said: str) -> None:
    ws = grouped()
    before = ws.resolve()
    ran = llmos("prune", "--method", "width", *command)
    assert ran.code == code and said in ran.err, ran.err
    assert ws.resolve() == before
    dry = llmos("prune", "--method", "width", *command, "--dry-run")
    assert dry.code == code and said in dry.err, dry.err


def test_a_dry_run_tells_what_would_be_narrower(grouped: Base, llmos: Any) -> None:
    ws = grouped()
    ran = llmos("prune", "--method", "width", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["matrices"]["model.layers.0.mlp.down_proj.weight"] == "reads intermediate_size: 64 now, then fewer"
    assert ran.json["matrices"]["model.layers.2.self_attn.o_proj.weight"].startswith("reads ")
    assert len(list(ws.checkpoints.iterdir())) == 1


class Pair(torch.nn.Module):
    """Ten units of one width and four of another, each one row of five weights; ten weights that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.heads = torch.nn.Parameter(torch.zeros(10, 5)), torch.nn.Parameter(torch.zeros(4, 5))
        self.rest = torch.nn.Parameter(torch.zeros(10))


def width_of(name: str, units: int) -> Width:
    place = Slice(name, 0, torch.arange(units)[:, None])
    return Width(name, None, units, (Group(name, (place,), (place,)),))


WIDE, HEADS = width_of("wide", 10), width_of("heads", 4)


@pytest.mark.parametrize(
    ("wide_cost", "heads_cost", "sparsity", "expected"),
    [
        (1.0, 100.0, 0.25, (6, 4)),  # 80 weights: 20 must go, where it is cheap
        (100.0, 1.0, 0.125, (10, 2)),
        (100.0, 1.0, 0.2, (9, 1)),  # the last head stays, so one of the others goes too
    ],
)
def test_the_cheapest_units_go(wide_cost: float, heads_cost: float, sparsity: float, expected: tuple[int, int]) -> None:
    choices = {
        WIDE: Choice({count: wide_cost * (10 - count) for count in range(1, 11)}),
        HEADS: Choice({count: heads_cost * (4 - count) for count in range(1, 5)}),
    }
    counts = share(Pair(), choices, sparsity, lambda counts: True)
    assert (counts[WIDE], counts[HEADS]) == expected


def test_the_cost_goes_through_what_was_measured() -> None:
    square = power_law([(0.1, 0.01), (0.2, 0.04)])
    assert [square(error) for error in (0.1, 0.2, 0.4)] == pytest.approx([0.01, 0.04, 0.16])
    assert power_law([(0.5, 2.0)])(0.25) == 1.0
    assert power_law([(0.1, 0.04), (0.2, 0.01)])(0.4) == pytest.approx(0.02), (
        "never falling, never less than in proportion"
    )
    assert power_law([(0.0, 0.0)])(0.3) == 0.3


def test_counts_that_a_configuration_refuses_are_passed_over() -> None:
    choices = {HEADS: Choice({count: float(4 - count) for count in range(1, 5)})}
    assert share(Pair(), choices, 0.05, lambda counts: counts[HEADS] != 3) == {HEADS: 2}


def test_what_a_large_step_took_too_much_is_given_back() -> None:
    """Two units are cheap, but then one whole head must go and the two were for nothing."""
    choices = {
        WIDE: Choice({10: 0.0, 9: 1.0, 8: 2.0, 7: 50.0}),
        HEADS: Choice({4: 0.0, 1: 40.0}),
    }
    counts = share(Pair(), choices, 15 / 80, lambda counts: True)
    assert (counts[WIDE], counts[HEADS]) == (10, 1)


DEEP = GROUPED.replace("num_hidden_layers: 3", "num_hidden_layers: 5")


def test_blocks_and_widths_go_together(grouped: Base, llmos: Any) -> None:
    ws = grouped(config=DEEP)
    ran = llmos(
        "prune", "--method", "shape", "--sparsity", "0.3", "-s", "prune.shape.slack=1000", "--heal", "1", "--json"
    )
    assert ran.code == 0, ran.err
    assert 0.298 <= 1 - size_of(ws) / size_of(ws, "HEAD~1") < 0.36
    assert config_of(ws)["num_hidden_layers"] == 4, "with all the slack there is, as few blocks as the share allows"
    assert "4 of 5 blocks left, intermediate_size 64 -> " in ran.json["reached"]
    careful = llmos("prune", "HEAD~1", "--method", "shape", "--sparsity", "0.3", "-s", "prune.shape.slack=1", "--json")
    assert careful.code == 0, careful.err
    tried = [note for note in careful.err.splitlines() if "before healing" in note]
    assert len(tried) == 2


def test_a_model_that_is_no_stack_of_blocks_is_made_narrower(grouped: Base, llmos: Any) -> None:
    ws = grouped("image-classification", MLP)
    ran = llmos("prune", "--method", "shape", "--sparsity", "0.2", "--json")
    assert ran.code == 0, ran.err
    assert config_of(ws)["hidden_size"] < 64


def slow_order(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[str]:
    """Greedily, every block measured at every turn, on a model that really lacks the blocks."""
    names = [block.name for block in blocks(model)]
    gone: list[str] = []

    def kl(without: list[str]) -> float:
        smaller = shortened(model, [index for index, name in enumerate(names) if name not in without])
        found = 0.0
        for batch in batches:
            whole, left = (each(**batch).logits.log_softmax(-1) for each in (model, smaller))
            found += float((whole.exp() * (whole - left)).sum(-1).mean())
        return found

    with torch.no_grad():
        while len(gone) < len(names) - 1:
            gone.append(min((name for name in names if name not in gone), key=lambda name: kl([*gone, name])))
    return gone


def test_the_block_that_is_missed_least_goes_first(grouped: Base, llmos: Any) -> None:
    ws = grouped(config=DEEP)
    model = load(ws.checkpoint().path)
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight.mul_([8.0, 1.0, 30.0, 0.1, 4.0][index])
    batches = [{"input_ids": torch.arange(64).view(4, 16) + 16 * turn} for turn in range(2)]
    found = list(least_missed(model, batches))
    assert [name for name, _ in found][:-1] == slow_order(model, batches)
    assert found[0][0] == "model.layers.3"

    ran = llmos("prune", "--method", "depth", "-s", "prune.depth.by=kl", "--sparsity", "0.3", "--json")
    assert ran.code == 0, ran.err
    assert "3 of 5 blocks left" in ran.json["reached"]


def test_of_shapes_about_as_good_the_one_of_fewer_blocks_is_taken() -> None:
    options = shape.Options(slack=1.2)
    assert shape.chosen({0: 1.0, 1: 1.1, 2: 1.3}, options) == 1
    assert shape.chosen({0: 2.0, 1: 1.0, 2: 1.3}, options) == 1
    assert [shape.depths(most, options) for most in (0, 1, 2, 5)] == [[0], [0, 1], [0, 1, 2], [0, 3, 5]]


def test_shapes_are_compared_on_samples_that_they_were_not_refitted_to() -> None:
    batches = [{"input_ids": torch.arange(rows)[:, None] + start} for rows, start in ((16, 0), (5, 100), (1, 200))]
    fitted, looked = (torch.cat([batch["input_ids"] for batch in each]).flatten().tolist() for each in apart(batches))
    assert fitted == [*range(12), 100, 101, 102, 103, 200]
    assert looked == [*range(12, 16), 104, 200]
