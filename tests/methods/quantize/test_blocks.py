"""Methods that work on whole blocks: scales folded, rounding learnt; on tiny models with random weights."""

from collections.abc import Callable, Mapping
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmos_cli.methods.folding import Fold, folds, largest_inputs
from llmos_cli.methods.grid import Codes, Grid, Rounding, nearest, widest
from llmos_cli.methods.quantize import autoround, awq, gptq, smoothquant
from llmos_cli.models.blocks import layers
from llmos_cli.models.calibrate import Hooks, Turn, sequential
from llmos_cli.models.statistics import Statistics


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 50, (6, 12), generator=generator)} for _ in range(2)]


def llama(key_value_heads: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=key_value_heads, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight *= torch.logspace(-1, 1, 16)[torch.randperm(16)]  # outliers
    return model


def bert() -> BertForTokenClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32
    )  # fmt: skip
    model = BertForTokenClassification(config)
    model.eval()
    return model


def on_turns(model: PreTrainedModel, before: object) -> None:
    sequential(
        model, batches(), lambda seen: None, layers=layers(model), needs={"norms"}, hooks=Hooks(before=before)  # type: ignore[arg-type]
    )  # fmt: skip


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batches()[0]).logits
    return found


@pytest.mark.parametrize(
    ("model", "pairs"),
    [
        (llama(1), [("input_layernorm", "k q v"), ("post_attention_layernorm", "gate up"), ("up_proj", "down")]),
        (
            llama(2),
            [
                ("input_layernorm", "k q v"),
                ("post_attention_layernorm", "gate up"),
                ("v_proj", "o"),
                ("up_proj", "down"),
            ],
        ),
        (bert(), [("value", "dense")]),  # its norms feed the residual too, and a GELU stands in the MLP
    ],
    ids=["llama-gqa", "llama", "bert"],
)
def test_the_pairs_that_may_be_folded(model: PreTrainedModel, pairs: list[tuple[str, str]]) -> None:
    found: list[list[tuple[str, str]]] = []

    def before(turn: Turn) -> None:
        names = {id(module): name.rpartition(".")[2] for name, module in turn.module.named_modules()}
        short = [
            (
                names[id(fold.maker)],
                " ".join(sorted(name.rpartition(".")[2].removesuffix("_proj") for name in fold.readers)),
            )
            for fold in folds(turn)
        ]
        found.append(short)

    whole = logits(model)
    on_turns(model, before)
    assert found == [pairs, pairs]
    assert torch.equal(logits(model), whole)  # trying leaves no trace


@pytest.mark.parametrize("method", [awq, smoothquant])
@pytest.mark.parametrize("build", [llama, bert])
def test_folding_changes_weights_and_not_what_is_computed(
    method: ModuleType, build: Callable[[], PreTrainedModel]
) -> None:
    model: PreTrainedModel = build()
    whole, weights = logits(model), {name: layer.weight.clone() for name, layer in linear(model).items()}
    grids = {f"{name}.weight": Grid(4, 8) for name in weights}
    on_turns(model, lambda turn: method.prepare(turn, grids, method.Options()))
    torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-5)
    if build is llama:  # which has outliers
        assert any(not torch.equal(layer.weight, weights[name]) for name, layer in linear(model).items())


def test_awq_takes_the_power_of_least_error() -> None:
    """Against rounding and multiplying out every power; outliers make a power other than 0 the best."""
    block = llama().model.layers[0]
    layer, norm = block.self_attn.q_proj, block.input_layernorm
    rows_NI = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)) * norm.weight.detach()
    hessian_II, grid = rows_NI.T @ rows_NI, Grid(3, 16)
    fold = Fold(norm, {"q": layer})
    best_I = awq.best_scale(fold, hessian_II, {"q.weight": grid}, 10)
    size_I = rows_NI.square().sum(0).sqrt()

    def error(scale_I: Tensor) -> float:
        scaled_OI = layer.weight.detach() * scale_I
        rounded_OI = nearest(scaled_OI, widest(scaled_OI, grid), grid).dequantized() / scale_I
        return float((rows_NI @ (rounded_OI - layer.weight.detach()).T).square().sum())

    tried = [
        size_I**power / (size_I**power).max().mul((size_I**power).min()).sqrt() for power in torch.linspace(0, 1, 11)
    ]
    errors = [error(scale_I) for scale_I in tried]
    assert error(best_I) == pytest.approx(min(errors), rel=1e-3) and min(errors) < 0.8 * errors[0]


def test_smoothquant_by_hand() -> None:
    reader = nn.Linear(3, 2, bias=False)
    reader.weight.data = torch.tensor([[1.0, -4.0, 0.0], [0.25, 2.0, 0.0]])
    scale_I = smoothquant.scale(torch.tensor([16.0, 1.0, 5.0]), {"reader": reader}, 0.5)
    torch.testing.assert_close(scale_I, torch.tensor([4.0, 0.5, 1.0]))  # sqrt(16 / 1), sqrt(1 / 4), a dead one


def test_the_largest_inputs_are_those_of_all_batches() -> None:
    model = llama()
    seen: dict[str, Tensor] = {}
    expected: list[Tensor] = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, args, out: expected.append(args[0]))
    for batch in batches():
        with torch.no_grad():
            model(**batch)
    hook.remove()
    on_turns(model, lambda turn: seen.update({k: v for k, v in largest_inputs(turn).items() if k not in seen}))
    wanted_I = torch.cat(expected).abs().flatten(0, 1).amax(0)
    torch.testing.assert_close(seen["model.layers.0.mlp.down_proj"], wanted_I)


@pytest.mark.parametrize("symmetric", [True, False])
def test_learnt_rounding_answers_better_and_keeps_zeros(symmetric: bool) -> None:
    model = llama()
    with torch.no_grad():
        for layer in linear(model).values():
            layer.weight[torch.rand(layer.weight.shape) < 0.3] = 0
    zeros = {f"{name}.weight": layer.weight == 0 for name, layer in linear(model).items()}
    distances: list[tuple[float, float]] = []
    parameters = dict(model.named_parameters())
    grid, roundings = Grid(2, 8, torch.bfloat16, symmetric), {}

    def visit(statistics: Mapping[str, Statistics]) -> None:
        for name, seen in statistics.items():
            weight_OI = parameters[name].detach().clone()
            codes = autoround.quantize(weight_OI, seen, grid, autoround.Options())
            parameters[name].data = codes.dequantized()
            roundings[name] = Rounding(weight_OI, codes, grid)

    def after(turn: Turn) -> None:
        def far(weights: dict[str, Tensor]) -> float:
            return sum(
                float(autoround.distance(turn.answer(n, weights), turn.target(n), None)) for n in range(turn.batches)
            )

        here = {name: rounding for name, rounding in roundings.items() if name.startswith(turn.name)}
        options = autoround.Options(iterations=80, learning_rate=0.01, batch_size=4)
        learnt = autoround.refine(turn, here, options, seed=0)
        again = autoround.refine(turn, here, options, seed=0)
        assert learnt and all(torch.equal(learnt[name].codes_OI, again[name].codes_OI) for name in learnt)
        before = far({})
        check(learnt, here)
        for name, codes in learnt.items():
            parameters[name].data = codes.dequantized()
        distances.append((before, far({})))

    def check(learnt: dict[str, Codes], here: dict[str, Rounding]) -> None:
        assert any(not torch.equal(codes.codes_OI, here[name].codes.codes_OI) for name, codes in learnt.items())
        for name, codes in learnt.items():
            assert codes.scale_OG.dtype == torch.bfloat16 and (codes.zero_OG is None) == symmetric
            assert codes.codes_OI.min() >= grid.low and codes.codes_OI.max() <= grid.high
            assert not codes.dequantized()[zeros[name]].any()

    sequential(model, batches(), visit, layers=layers(model), needs=set(gptq.NEEDS), hooks=Hooks(after=after))
    assert len(distances) == 2 and all(now < 0.97 * before for before, now in distances)


def test_every_fourth_batch_judges() -> None:
    assert autoround.shares(9) == ([0, 1, 2, 4, 5, 6, 8], [3, 7])
    assert autoround.shares(3) == ([0, 1, 2], [0, 1, 2])


def test_no_iterations_learn_nothing() -> None:
    model = llama()
    weight_OI = torch.eye(16)
    codes = nearest(weight_OI, widest(weight_OI, Grid(4, 8)), Grid(4, 8))
    name = "model.layers.0.self_attn.q_proj.weight"

    def before(turn: Turn) -> None:
        if turn.index == 0:
            rounding = {name: Rounding(weight_OI, codes, Grid(4, 8))}
            assert autoround.refine(turn, rounding, autoround.Options(iterations=0), seed=0) == {}

    on_turns(model, before)


def linear(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in layers(model).items() if isinstance(layer, nn.Linear)}
