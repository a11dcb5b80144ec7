"""`llmos prune` and `llmos quantize` on tiny trained models: what they commit, prove, refuse and leave alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_cli.core.records import EVENTS, read_events
from llmos_cli.core.workspace import Workspace
from llmos_cli.methods.patterns import Target
from llmos_cli.methods.prune import magnitude
from llmos_cli.models import dequantize, headers
from llmos_cli.models.load import load
from llmos_cli.models.matrices import matrices
from llmos_cli.models.rewrite import rewrite
from llmos_cli.models.statistics import Statistics
from llmos_cli.operations.compression import finish
from llmos_cli.operations.compression.result import no_faster
from llmos_cli.operations.proof import Exhibits
from llmos_cli.operations.served import Speed
from tests.operations.conftest import committed

TOKENS = '{task: token-classification, source: "builtin:pytokens", sequence_length: 32, max_samples: 64, max_eval_samples: 32, tokenizer: {vocab_size: 300}}'
LSTM = f"""\
model: {{arch: lstm, hidden_size: 16, embedding_size: 16}}
data: {TOKENS}
train: {{max_steps: 4, batch_size: 8}}
"""
Base = Callable[..., Workspace]


def weights(ws: Workspace, rev: str = "HEAD") -> dict[str, torch.Tensor]:
    return {name: matrix.read() for name, matrix in matrices(load(ws.checkpoint(rev).path)).items()}


def test_prune_and_quantize_a_language_model(base: Base, llmos: Any) -> None:
    ws = base()
    pruned = llmos("prune", "--sparsity", "0.5", "--heal", "2", "-s", "data.max_eval_samples=4", "--json")
    assert pruned.code == 0, pruned.err
    assert all(((weight == 0).float().mean(1) == 0.5).all() for weight in weights(ws).values())
    # Sparse storage, which is to the last bit, would keep a -0.
    assert not any(weight[weight == 0].signbit().any() for weight in weights(ws).values())
    assert pruned.json["proof"]["parity"]["difference"] < 1e-4
    assert pruned.json["proof"]["samples"] == 4
    assert set(pruned.json["left_alone"]) == {"lm_head", "model.embed_tokens"}
    assert ws.manifest(ws.resolve()).made.parents == (ws.resolve("HEAD~1"),)
    known = {name for name, _ in ws.metrics(ws.resolve())}
    assert {"kl_parent", "kl_base", "bits_per_byte", "sparsity", "parity", "size"} <= known
    assert "\nproof      reloaded in a fresh process by transformers" in llmos("show").out
    (kept,) = [event for event in read_events(ws.runs.list()[-1].path / EVENTS)[0] if event["event"] == "proven"]
    assert kept["checkpoint"] == pruned.json["checkpoint"]
    assert kept["told"] == {key: value for key, value in pruned.json.items() if key != "schema"}
    assert {"token_latency", "token_throughput", "latency_p50", "throughput", "peak_memory"} <= known
    proven = ws.metrics(ws.resolve())["bits_per_byte", pruned.json["proof"]["split"]]
    assert proven.samples == pruned.json["proof"]["rows"] != ""
    parent = ws.metrics(ws.resolve("HEAD~1"))
    speed = pruned.json["proof"]["speed"]
    assert speed["before"]["token_latency"] == parent["token_latency", pruned.json["proof"]["split"]].value
    assert speed["headline"] == "token_latency_best" and speed["before"].keys() == speed["after"].keys()

    zeros = {name: weight == 0 for name, weight in weights(ws).items()}
    quantized = llmos("quantize", "--bits", "3", "--group-size", "32", "--heal", "2")
    assert quantized.code == 0, quantized.err
    assert "reloaded in a fresh process by transformers" in quantized.out
    assert "KL to the uncompressed one" in quantized.out
    assert "one token at batch 1, median" in quantized.out and "compressing took" in quantized.out
    assert (
        # Of layers with 32 inputs a group is the whole row, and is written as that.
        "vLLM would refuse it: W3A16 with a scale per channel: for weights alone it has 4 and 8 bits; "
        "W3A16 with groups of 32: for weights alone it has 4 and 8 bits\n"
    ) in quantized.out
    for name, weight in weights(ws).items():
        assert not weight[zeros[name]].any(), name
        assert all(len(row.unique()) <= 8 for row in weight.unflatten(1, (-1, 32)).flatten(0, 1))
    config = json.loads((ws.checkpoint().path / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 3

    again = llmos("quantize")
    assert again.code == 2 and "quantized already" in again.err


def test_a_result_that_is_no_faster_says_so() -> None:
    def told(before: float, after: float) -> str:
        return no_faster(Speed({"latency_best": before}, {"latency_best": after}, "latency_best", 16))

    assert told(2.0, 1.0) == ""
    assert told(2.0, 2.02) == "no faster than its parent as it is served here: 1.01 of the time for one sample"
    assert told(2.0, 3.0) == "slower than its parent as it is served here: 1.50 of the time for one sample"


def test_latency_is_left_out_on_request(base: Base, llmos: Any) -> None:
    base("image-classification")
    timed = llmos("prune", "--json")
    assert timed.json["proof"]["speed"]["headline"] == "latency_best", timed.err
    assert {"latency_p50", "throughput", "peak_memory"} < set(timed.json["proof"]["speed"]["after"])
    off = llmos("prune", "HEAD~1", "-s", "prune.latency=false")
    assert "latency was not measured: prune.latency is off" in off.out and "as served here" not in off.out


@pytest.mark.parametrize(("guard", "told"), [("--max-kl", "above --max-kl 0"), ("--max-drop", "bits_per_byte is 0.0")])
def test_a_result_worse_than_the_guard_is_not_committed(base: Base, llmos: Any, guard: str, told: str) -> None:
    ws = base()
    before = ws.resolve()
    ran = llmos(
        "prune", "--method", "magnitude", "--sparsity", "0.9", guard, "0",
        "-s", "data.max_eval_samples=4", "-s", "prune.latency=false",
    )  # fmt: skip
    assert ran.code == 3 and told in ran.err
    assert ws.resolve() == before and len(list(ws.checkpoints.iterdir())) == 1
    assert ws.runs.list()[-1].status == "failed"


def test_convolutions(base: Base, llmos: Any) -> None:
    ws = base("image-classification")
    pruned = llmos("prune", "--method", "sparsegpt", "--sparsity", "0.4", "--json")
    assert pruned.code == 0, pruned.err
    assert pruned.json["proof"]["parity"]["reader"].endswith("llmos_cli.models")
    found = weights(ws).values()
    assert sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found) == pytest.approx(
        0.4, abs=0.02
    )


@pytest.mark.slow
@pytest.mark.cold
def test_lstms(base: Base, llmos: Any) -> None:
    ws = base("token-classification", LSTM)
    with ws.stage() as staged:
        parent = ws.checkpoint()
        model = load(parent.path)
        for matrix in matrices(model).values():
            matrix.write(magnitude.prune(matrix.read(), Statistics(), Target(0.5), magnitude.Options()))
        rewrite(model, parent.path, staged)
        with ws.begin("prune", config={}) as run:
            run.commit(staged, parent.manifest.made)
    zeros = {name: weight == 0 for name, weight in weights(ws).items()}
    ran = llmos("quantize", "--heal", "2", "--json")
    assert ran.code == 0, ran.err
    assert "kept with 8 bits per output channel" in ran.json["notes"][0]
    assert all(not weight[zeros[name]].any() for name, weight in weights(ws).items())
    assert ran.json["proof"]["bytes_after"]["layers"] < 0.7 * ran.json["proof"]["bytes_before"]["layers_bf16"]


def test_w8a8_rounds_inputs_too(base: Base, llmos: Any) -> None:
    ws = base()
    ran = llmos("quantize", "--method", "w8a8")  # the config file says 4 bits: the method named here knows better
    assert ran.code == 0, ran.err
    assert "8 bits, one scale per output channel, inputs rounded to 8 bits" in ran.out
    config = json.loads((ws.checkpoint().path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    label = llmos("log", "--oneline", "-n", "1").out
    assert "quantize w8a8 8 bits" in label, label
    recorded = ws.checkpoint().manifest.made.config["quantize"]
    assert (recorded["bits"], recorded["group_size"]) == (8, -1)


@pytest.mark.parametrize(
    ("method", "own"), [("awq", ()), ("smoothquant", ()), ("autoround", ("-s", "quantize.autoround.iterations=3"))]
)
def test_methods_that_work_on_whole_blocks(base: Base, llmos: Any, method: str, own: tuple[str, ...]) -> None:
    ws = base()
    ran = llmos("quantize", "--method", method, "--heal", "1", "-s", "heal.codes=true", *own, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["proof"]["parity"]["difference"] < 1e-3
    assert set(ran.json["left_alone"]) == {"lm_head", "model.embed_tokens"}
    assert ws.checkpoint().manifest.made.config["quantize"]["bits"] == (8 if method == "smoothquant" else 4)


def test_zero_points_are_written_and_read(base: Base, llmos: Any) -> None:
    ws = base()
    ran = llmos("quantize", "--bits", "3", "--heal", "1", "-s", "quantize.symmetric=false", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["proof"]["parity"]["difference"] < 1e-3
    assert "dequantize=True" in " ".join(ran.json["notes"])
    config = json.loads((ws.checkpoint().path / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["symmetric"] is False
    refused = llmos("quantize", "HEAD~1", "--method", "w8a8", "-s", "quantize.symmetric=false")
    assert refused.code == 2 and "the codes of w8a8 are symmetric" in refused.err


@pytest.mark.parametrize("asked", [("--bits", "5"), ("--method", "w8a8")])
def test_the_headline_of_convolutions_says_their_own_form(base: Base, llmos: Any, asked: tuple[str, str]) -> None:
    base("image-classification")
    ran = llmos("quantize", *asked)
    assert ran.code == 0, ran.err
    method = asked[1] if asked[0] == "--method" else "gptq"
    assert f"  {method}: 8 bits, one scale per output channel in 3 matrices\n" in ran.out
    assert ("only Linear layers round their inputs" in ran.out) == (method == "w8a8")
    assert f"quantize {method} 8 bits" in llmos("log", "--oneline").out


def test_layers_that_do_not_fit_are_named_and_nothing_at_all_is_an_error(base: Base, llmos: Any) -> None:
    ws = base()
    ran = llmos("prune", "--pattern", "1:7")
    assert ran.code == 1 and "its 32 inputs do not divide into groups of 7" in ran.err
    planned = llmos("prune", "--pattern", "1:7", "--dry-run")
    assert planned.code == 1 and ran.err.endswith(planned.err)
    ran = llmos("prune", "-s", "prune.ignore=['*']")
    assert ran.code == 1 and "ignored, as the config says" in ran.err
    assert len(list(ws.checkpoints.iterdir())) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prune", "--sparsity", "1.5"], "sparsity"),
        (["prune", "--sparsity", "0"], "takes nothing away"),
        (["prune", "--pattern", "half"], "pattern"),
        (["prune", "--pattern", "4:2"], "4:2"),
        (["prune", "--pattern", "2:4", "--sparsity", "0.6"], "means sparsity 0.5, not 0.6"),
        (["prune", "--method", "wonda"], "wanda"),
        (["prune", "-s", "prune.wanda.depth=3"], "depth"),
        (["prune", "-s", "prune.sparsegpt.damping=-1"], "damping"),
        (["quantize", "--bits", "9"], "bits"),
        (["quantize", "--group-size", "0"], "group_size"),
        (["quantize", "--heal", "-3"], "frozen codes of quantized layers scales, norms and biases learn; at least 0"),
        (["quantize", "--method", "w8a8", "--bits", "4"], "w8a8 has bits 8, not 4"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_right(base: Base, llmos: Any, command: list[str], said: str) -> None:
    base()
    ran = llmos(*command)
    assert ran.code == 2 and said in ran.err
    assert len(list(Path("checkpoints").iterdir())) == len(list(Path("runs").iterdir())) == 1


@pytest.mark.parametrize("verb", ["prune", "quantize", "compress"])
def test_who_commits_while_the_parent_is_looked_at_keeps_the_branch(
    base: Base, llmos: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint would fall out of the line: the result came from the one before."""
    ws, operation = base(), importlib.import_module(f"llmos_cli.operations.{verb}")
    real = operation.as_begun

    def as_begun(*looked: Any) -> Any:
        committed(ws, "causal-lm", operation="train", parents=(ws.resolve(),), change=lambda model: None)
        return real(*looked)

    monkeypatch.setattr(operation, "as_begun", as_begun)
    options = ["--target-ratio", "0.9", "-s", "compress.cuts=[]"] if verb == "compress" else []
    ran = llmos(verb, *options, "-s", f"{verb}.latency=false", "-s", "data.max_eval_samples=4")
    assert ran.code == 6 and "main moved to" in ran.err
    assert len(list(ws.oplog.operations())) == 2 and ws.manifest(ws.resolve()).made.operation == "train"


def test_a_missing_revision(base: Base, llmos: Any) -> None:
    base()
    assert llmos("prune", "nowhere").code == 4


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        ("weights", 1, "the result's logits differ by"),
        ("config", 5, "of the model's tensors or has them in another shape"),
        ("codes", 1, "the result's logits differ by"),
    ],
)
def test_a_result_that_was_written_wrongly_is_not_committed(
    base: Base, llmos: Any, monkeypatch: pytest.MonkeyPatch, damage: str, code: int, said: str
) -> None:
    """Between the writing and the proof, as a faulty writer or disk would."""
    ws = base()
    prove = finish.prove

    def damaged(exhibits: Exhibits, **rest: Any) -> Any:
        if damage == "config":
            config = json.loads((exhibits.staged / "config.json").read_text())
            (exhibits.staged / "config.json").write_text(json.dumps({**config, "hidden_size": 48}))
        else:
            wanted = ("q_proj.weight_packed", "o_proj.weight_packed") if damage == "codes" else ("up_proj.weight",)
            for name, entry in headers.of_directory(exhibits.staged).items():
                if name.endswith(wanted):
                    with open(entry.file, "r+b") as file:
                        file.seek(entry.start)
                        turned = bytes(byte ^ 0x40 for byte in file.read(entry.bytes))
                        file.seek(entry.start)
                        file.write(turned)
        return prove(exhibits, **rest)

    monkeypatch.setattr(finish, "prove", damaged)
    command = ["quantize", "--method", "rtn"] if damage == "codes" else ["prune", "--method", "magnitude"]
    ran = llmos(*command)
    assert ran.code == code and said in ran.err, ran.err
    assert len(list(ws.checkpoints.iterdir())) == 1


@pytest.mark.parametrize(
    "where", ["model.layers.0.self_attn.q_proj", "model.layers.1.input_layernorm", "model.embed_tokens"]
)
def test_weights_that_are_not_finite(base: Base, llmos: Any, where: str) -> None:
    ws = base()
    parent = ws.checkpoint()
    model = load(parent.path)
    model.get_submodule(where).weight.data.flatten()[-1] = torch.nan  # type: ignore[operator, union-attr]
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        rewrite(model, parent.path, staged)
        run.commit(staged, parent.manifest.made)
    cut = ["prune", "--method", "depth", "--sparsity", "0.3"]
    for command in (["prune", "--method", "magnitude"], cut, ["quantize"], ["quantize", "--heal", "1"]):
        ran = llmos(*command)
        assert ran.code == 1 and f"{where}.weight holds values that are not finite" in ran.err


def test_zeros_enough_are_left_as_they_are(base: Base, llmos: Any) -> None:
    ws = base()
    assert llmos("prune", "--method", "magnitude", "--sparsity", "0.5").code == 0
    again = llmos("prune", "--method", "magnitude", "--sparsity", "0.3")
    assert again.code == 1 and "it has as many zeros already" in again.err
    assert len(list(ws.checkpoints.iterdir())) == 2


def test_the_headline_says_the_groups_that_are_there(base: Base, llmos: Any) -> None:
    base()
    ran = llmos("quantize", "--method", "rtn", "--group-size", "7", "--json")
    assert ran.json["reached"] == "4 bits, groups of 4"
    assert "7 does not divide the inputs of any layer: groups of 4 there" in ran.json["notes"]
    assert llmos("quantize", "-s", "quantize.memory_budget=1e300").code == 2


def test_a_dry_run_tells_and_does_nothing(base: Base, llmos: Any) -> None:
    base()
    ran = llmos("quantize", "--dry-run", "-s", "quantize.ignore=['*.k_proj']")
    assert ran.code == 0 and "4 bits, groups of 64" in ran.out and "left alone: output layer" in ran.out
    assert "left alone: ignored" in llmos("prune", "--dry-run", "-s", "prune.ignore=['*.k_proj']").out
    assert len(list(Path("runs").iterdir())) == 1


def test_bits_by_layer(base: Base, llmos: Any) -> None:
    ws = base()
    mixed = llmos(
        "quantize", "--bits", "3", "--group-size", "32", "-s", "data.max_eval_samples=4",
        "-s", "quantize.layers={'*.mlp.*': 8, '*.0.mlp.down_proj': 5}", "--json",
    )  # fmt: skip
    assert mixed.code == 0, mixed.err
    assert mixed.json["reached"].startswith("3 to 8 bits")
    path = ws.checkpoint("HEAD").path
    bits = dequantize.bits_by_layer(json.loads((path / "config.json").read_bytes()), headers.of_directory(path))
    assert bits["model.layers.0.self_attn.q_proj.weight"] == 3
    assert bits["model.layers.0.mlp.up_proj.weight"] == 8
    assert bits["model.layers.0.mlp.down_proj.weight"] == 5


def test_bits_of_a_layer_that_is_not_there(base: Base, llmos: Any) -> None:
    base()
    refused = llmos("quantize", "-s", "quantize.layers={'*.mpl.*': 8}")
    assert refused.code == 2
    assert "no linear layer is called '*.mpl.*'" in refused.err and "model.layers.0." in refused.err
