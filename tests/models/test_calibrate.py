"""Block-sequential calibration: the same sums as a plain pass over the whole model, and inputs that follow the compressed stream."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llmos_cli.errors import LlmosError
from llmos_cli.models.architectures.cnn import CnnConfig, CnnForImageClassification
from llmos_cli.models.architectures.lstm import LstmConfig, LstmForTokenClassification
from llmos_cli.models.architectures.mlp import MlpConfig, MlpForImageClassification
from llmos_cli.models.blocks import layers
from llmos_cli.models.calibrate import Hooks, Turn, sequential
from llmos_cli.models.statistics import Statistics

Batches = list[dict[str, Tensor]]
EVERYTHING = {"norms", "hessian", "drift"}


def text(*, padded: bool = False) -> Batches:
    generator = torch.Generator().manual_seed(0)
    batches: Batches = [{"input_ids": torch.randint(0, 50, (3, 9), generator=generator)} for _ in range(2)]
    for batch in batches if padded else []:
        batch["attention_mask"] = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
    return batches


def images() -> Batches:
    return [{"pixel_values": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(n))} for n in range(2)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> BertForTokenClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_labels=3,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertForTokenClassification(config).eval()


def cnn() -> CnnForImageClassification:
    torch.manual_seed(0)
    return CnnForImageClassification(CnnConfig(channels=[4, 6], num_labels=3)).eval()


def lstm() -> LstmForTokenClassification:
    torch.manual_seed(0)
    return LstmForTokenClassification(
        LstmConfig(vocab_size=50, embedding_size=6, hidden_size=5, num_hidden_layers=2, num_labels=3)
    ).eval()


def mlp() -> MlpForImageClassification:
    torch.manual_seed(0)
    return MlpForImageClassification(MlpConfig(hidden_size=12, num_labels=3)).eval()


FAMILIES = [(llama, text()), (bert, text(padded=True)), (cnn, images()), (lstm, text(padded=True)), (mlp, images())]
IDS = ["llama", "bert", "cnn", "lstm", "mlp"]


def measured(model: nn.Module, batches: Batches, needs: set[str] = EVERYTHING) -> dict[str, Statistics]:
    found: dict[str, Statistics] = {}
    sequential(model, batches, found.update, layers=layers(model), needs=needs)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(("build", "batches"), FAMILIES, ids=IDS)
def test_sums_are_those_of_a_plain_pass(build, batches: Batches) -> None:  # type: ignore[no-untyped-def]
    model = build()
    found, plain = measured(model, batches), plain_pass(model, batches)
    assert set(found) == set(plain)
    for name, rows_NI in plain.items():
        assert found[name].count == len(rows_NI), name
        torch.testing.assert_close(found[name].hessian_II, rows_NI.T @ rows_NI, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[name].norm_I, rows_NI.norm(dim=0), rtol=1e-4, atol=1e-4)
        if found[name].drift_II is not None:
            assert found[name].drift_II.abs().max() < 1e-4, "nothing was compressed, so nothing drifts"


@pytest.mark.parametrize(("build", "batches"), FAMILIES, ids=IDS)
def test_each_layer_sees_what_the_compressed_ones_before_it_give(build, batches: Batches) -> None:  # type: ignore[no-untyped-def]
    model, original = build(), plain_pass(build(), batches)
    visited: list[Mapping[str, Statistics]] = []

    def visit(seen: Mapping[str, Statistics]) -> None:
        visited.append(seen)
        for name in seen:
            model.get_parameter(name).data.mul_(0.9)

    sequential(model, batches, visit, layers=layers(model), needs=EVERYTHING)  # type: ignore[arg-type]
    assert sorted(name for seen in visited for name in seen) == sorted(original)
    last = visited[-1] or visited[-2]
    for name, found in last.items():
        now_NI = plain_pass(model, batches)[name]
        torch.testing.assert_close(found.hessian_II, now_NI.T @ now_NI, rtol=1e-3, atol=1e-4)
        assert found.drift_II is not None
        torch.testing.assert_close(found.drift_II, now_NI.T @ (original[name] - now_NI), rtol=1e-3, atol=1e-3)


def test_layers_given_the_same_tensor_share_a_measurement() -> None:
    found = measured(llama(), text())
    query, key, out = (found[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qko")
    assert query is key and query is not out


def test_an_encoder_stays_there_for_its_decoder() -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=16, d_ff=24, d_kv=8, num_layers=2, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    batches = [{**batch, "decoder_input_ids": batch["input_ids"][:, :4]} for batch in text()]
    found, plain = measured(model, batches), plain_pass(model, batches)
    for name, rows_NI in plain.items():
        torch.testing.assert_close(found[name].hessian_II, rows_NI.T @ rows_NI, rtol=1e-4, atol=1e-4)


def test_a_module_without_blocks_is_one_block() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, stride=2, padding="valid", groups=2, padding_mode="circular")
            self.body = nn.Linear(36, 5)
            self.head = nn.Linear(5, 2)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.head(F.relu(self.body(self.conv(pixel_values).flatten(1))))

    found = measured(Net(), [{"pixel_values": torch.rand(3, 2, 8, 8)}])
    assert {name: tuple(seen.hessian_II.shape) for name, seen in found.items()} == {
        "conv.weight": (9, 9),
        "body.weight": (36, 36),
    }
    assert found["conv.weight"].count == 3 * 9 * 2


def test_a_block_that_runs_twice_is_an_error() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))])
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks[0](self.blocks[1](self.blocks[0](x))))

    with pytest.raises(LlmosError, match="run once and in order"):
        measured(Twice(), [{"x": torch.rand(2, 4)}])


def test_the_model_is_left_as_it_was() -> None:
    model, batches = llama(), text()
    before = model(**batches[0]).logits
    measured(model, batches)
    assert torch.equal(model(**batches[0]).logits, before) and model.config.use_cache
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_the_same_inputs_give_the_same_bits() -> None:
    first, second = measured(llama(), text()), measured(llama(), text())
    assert all(torch.equal(first[name].hessian_II, second[name].hessian_II) for name in first)


def test_blocks_without_chosen_layers_are_passed_by() -> None:
    model = llama()
    only = {name: layer for name, layer in layers(model).items() if "layers.1.mlp" in name}
    found: dict[str, Statistics] = {}
    sequential(model, text(), found.update, layers=only, needs=EVERYTHING)  # type: ignore[arg-type]
    plain = plain_pass(model, text())
    assert {name.removesuffix(".weight") for name in found} == set(only)
    for name, statistics in found.items():
        torch.testing.assert_close(statistics.norm_I, plain[name].norm(dim=0), rtol=1e-4, atol=1e-4)


def test_methods_that_need_nothing_run_nothing() -> None:
    model, visited = llama(), []
    sequential(model, [], lambda seen: visited.append(list(seen)), layers=layers(model), needs=set())
    assert [len(names) for names in visited] == [7, 7, 7] and visited[1][0].startswith("model.layers.1.")


def test_layers_that_no_input_reaches_have_empty_statistics() -> None:
    model = llama()
    model.model.layers[1].spare = nn.Linear(4, 4)
    found = measured(model, text())
    assert found["model.layers.1.spare.weight"].count == 0


@pytest.mark.parametrize(("build", "batches"), FAMILIES, ids=IDS)
def test_a_hook_sees_what_the_block_answers_and_what_the_original_did(build, batches: Batches) -> None:  # type: ignore[no-untyped-def]
    model, original, turns = build(), build(), []

    def visit(seen: Mapping[str, Statistics]) -> None:
        for name in seen:
            model.get_parameter(name).data.mul_(0.9)

    def after(turn: Turn) -> None:
        turns.append(turn.name)
        for number in range(turn.batches):
            was, now = (block_output(whole, turn.name, batches[number]) for whole in (original, model))
            torch.testing.assert_close(turn.target(number), was, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(turn.answer(number), now, rtol=1e-4, atol=1e-5)
        named = {name: value for name, value in original.named_parameters() if name.startswith(turn.name)}
        if len(turns) == 1:
            torch.testing.assert_close(turn.answer(0, named), turn.target(0), rtol=1e-4, atol=1e-5)

    sequential(model, batches, visit, layers=layers(model), needs={"norms"}, hooks=Hooks(after=after))
    assert turns, "every family has a block with layers"


def test_gradients_reach_the_weights_a_hook_replaces_and_nothing_else() -> None:
    model = llama()

    def after(turn: Turn) -> None:
        name = f"{turn.name}.mlp.down_proj.weight"
        weight = (model.get_parameter(name).detach() + 0.1).requires_grad_()
        with torch.enable_grad():
            loss = (turn.answer(0, {name: weight}) - turn.target(0)).square().sum()
        (gradient,) = torch.autograd.grad(loss, [weight])
        assert gradient.abs().max() > 0

    sequential(model, text(), lambda seen: None, layers=layers(model), needs={"norms"}, hooks=Hooks(after=after))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_block_rewritten_before_its_turn_is_measured_as_it_is_then() -> None:
    plain, model = measured(llama(), text()), llama()

    def before(turn: Turn) -> None:
        seen = turn.measure({"norms"})
        assert seen[f"{turn.name}.self_attn.q_proj.weight"] is seen[f"{turn.name}.self_attn.v_proj.weight"]
        for name, statistics in plain.items():
            if name.startswith(turn.name):
                torch.testing.assert_close(seen[name].norm_I, statistics.norm_I, rtol=1e-4, atol=1e-4)
        turn.module.input_layernorm.weight.mul_(2)
        for letter in "qkv":
            getattr(turn.module.self_attn, f"{letter}_proj").weight.div_(2)

    found: dict[str, Statistics] = {}
    sequential(model, text(), found.update, layers=layers(model), needs=EVERYTHING, hooks=Hooks(before=before))  # type: ignore[arg-type]
    for name, statistics in found.items():
        factor = 2 if name.split(".")[-2][0] in "qkv" else 1
        torch.testing.assert_close(statistics.norm_I, factor * plain[name].norm_I, rtol=1e-3, atol=1e-3)
        assert statistics.drift_II is not None
        assert statistics.drift_II.abs().max() < 1e-4, "the block computes as before, so nothing drifts"


def block_output(model: nn.Module, name: str, batch: dict[str, Tensor]) -> Tensor:
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: object, output: object) -> None:
        outputs.append(
            output
            if isinstance(output, Tensor)
            else next(iter(output.values() if isinstance(output, dict) else output))
        )  # type: ignore[arg-type,call-overload]

    handle = (model.get_submodule(name) if name else model).register_forward_hook(hook)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return outputs[0]


def plain_pass(model: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """The rows that reach each matrix, by hooks on one ordinary pass over the whole model."""
    rows: dict[str, list[Tensor]] = {}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def record(layer: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            for weight, rows_NI in slow_rows(layer, args[0], output, keep).items():
                rows.setdefault(f"{name}.{weight}", []).append(rows_NI)

        return record

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers(model).items()]
    for batch in batches:
        keep = batch.get("attention_mask")
        with torch.no_grad():
            model(**batch)
    for handle in hooks:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def slow_rows(layer: nn.Module, given: Tensor, output: object, keep: Tensor | None) -> dict[str, Tensor]:
    if isinstance(layer, nn.Conv2d):
        columns = F.unfold(given, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        return {"weight": columns.transpose(1, 2).flatten(0, 1)}

    def real(source: Tensor) -> Tensor:
        return source[keep.bool()] if keep is not None and source.dim() == 3 else source.flatten(0, -2)

    if not isinstance(layer, nn.LSTM):
        return {"weight": real(given)}
    states, state = [], torch.zeros(len(given), layer.hidden_size)
    cell = torch.zeros_like(state)
    for step in range(given.shape[1]):
        states.append(state)
        gates = F.linear(given[:, step], layer.weight_ih_l0, layer.bias_ih_l0) + F.linear(
            state, layer.weight_hh_l0, layer.bias_hh_l0
        )
        enter, forget, new, leave = gates.chunk(4, 1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        state = leave.sigmoid() * cell.tanh()
    return {"weight_ih_l0": real(given), "weight_hh_l0": real(torch.stack(states, 1))}
