"""`llmos diff`: what changed between two checkpoints, weights included."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.events import Metric, ignore
from llmos_cli.models import headers
from llmos_cli.models.load import load
from llmos_cli.models.quantized import Quantized, write_quantized
from llmos_cli.operations.diff import MetricDiff, _difference
from llmos_cli.operations.weights import compare
from tests.operations.conftest import committed, make


def weights(ran):
    return {weight["name"]: weight for weight in ran.json["weights"]}


def test_each_weight_against_the_models(line: Workspace, llmos):
    ran = llmos("diff", "base", "HEAD", "--json", "-q")
    before, after = (dict(load(line.checkpoint(rev).path).named_parameters()) for rev in ("base", "HEAD"))
    for name, weight in weights(ran).items():
        with torch.inference_mode():
            change = (after[name] - before[name]).norm() / before[name].norm()
        assert weight["change"] == pytest.approx(float(change), rel=1e-4)
        assert weight["after"]["sparsity"] == pytest.approx(float((after[name] == 0).float().mean()))
        assert weight["after"]["bits"] == 32
        assert weight["after"]["bytes"] == 4 * after[name].numel()
        assert weight["after"]["norm"] == pytest.approx(float(after[name].detach().norm()), rel=1e-4)
    assert weights(ran)["model.layers.0.mlp.up_proj.weight"]["after"]["sparsity"] == 0.5


def test_the_table(line: Workspace, llmos):
    ran = llmos("diff", "base", "-q")
    assert ran.code == 0
    row = next(row for row in ran.out.splitlines() if row.startswith("model.layers.1.mlp.up_proj.weight"))
    assert "0 % → 50 %" in row and " 32 " in row
    assert "tensors are equal" in ran.out


def test_two_operations_are_told_apart(line: Workspace, llmos):
    """What one of them has no word for stands by itself, without what nobody chose."""
    trained = line.checkpoint("base")
    options = {"method": "wanda", "sparsity": 0.7, "pattern": "unstructured", "heal": 0}
    made = replace(
        trained.manifest.made,
        operation="prune",
        parents=(trained.id,),
        config={"data": {**trained.manifest.made.config["data"], "max_samples": 5}, "prune": options},
    )
    with line.begin("prune", config={}) as run, line.stage() as staged:
        (staged / "a").write_text("1")
        pruned = run.commit(staged, made, move=False)
    found = llmos("diff", "base", pruned.id, "--no-tensors", "--json").json
    assert [change["key"] for change in found["config"]] == ["data.max_samples"]
    assert found["after"]["own"] == {"prune.method": "wanda", "prune.sparsity": 0.7}
    assert found["before"]["own"].keys() == {"model.arch", *WIDTHS, "train.batch_size", "train.max_steps"}
    told = llmos("diff", "base", pruned.id, "--no-tensors").out
    assert "made by different operations: train, prune\n" in told
    assert "\nonly prune has  value\nprune.method    wanda\nprune.sparsity  0.7\n" in told
    assert "different operations" not in llmos("diff", "base", "base", "--no-tensors").out


WIDTHS = {f"model.{name}" for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}


def test_equal_checkpoints(line: Workspace, llmos):
    ran = llmos("diff", "HEAD", "HEAD", "--json", "-q")
    assert ran.json["config"] == ran.json["data"] == ran.json["environment"] == []
    assert {weight["change"] for weight in ran.json["weights"]} == {0.0}
    assert ran.json["shared"] == ran.json["before"]["bytes"]


def test_what_was_changed_in_data_and_environment(line: Workspace, llmos):
    made = line.checkpoint("HEAD").manifest.made
    data = json.loads(json.dumps(made.data, default=dict)) | {"splits": {"train": {"rows": 9, "sha256": "a" * 64}}}
    committed = []
    for rows, threads in ((9, 1), (8, 2)):
        data["splits"]["train"]["rows"] = rows
        other = replace(made, data=json.loads(json.dumps(data)), environment={**made.environment, "threads": threads})
        with line.begin("prune", config={}) as run, line.stage() as staged:
            (staged / "a").write_text("1")
            committed.append(run.commit(staged, other, move=False).id)
    found = llmos("diff", *committed, "--no-tensors", "--json").json
    assert found["config"] == []
    assert found["data"] == [{"key": "splits.train.rows", "before": 9, "after": 8}]
    assert found["environment"] == [{"key": "threads", "before": 1, "after": 2}]


def test_metrics_with_their_intervals(line: Workspace, llmos):
    with line.begin("eval", config={}) as run:
        for checkpoint in (line.resolve("base"), line.resolve()):
            run.emit(Metric("accuracy", 0.5, split="test", checkpoint=checkpoint))
    hint = "`llmos eval base HEAD` measures both with intervals: what training measures has none"
    assert hint in llmos("diff", "base", "--no-tensors").out
    for rev in ("base", "HEAD"):
        llmos("eval", rev, "-s", "eval.latency=false", "-q")
    metrics = llmos("diff", "base", "--no-tensors", "--json").json["metrics"]
    (found,) = [m for m in metrics if (m["name"], m["split"]) == ("loss", "test")]
    assert found["before"] != found["after"]
    assert found["before_interval"][0] < found["before"] < found["before_interval"][1]
    (kl,) = [m for m in metrics if (m["name"], m["split"]) == ("kl_base", "test")]
    assert kl["before"] is None and kl["after"] > 0
    assert hint not in llmos("diff", "base", "--no-tensors").out


def test_a_missing_revision(line: Workspace, llmos):
    assert llmos("diff", "base", "nope").code == 4


@pytest.mark.cold  # what it imports is what is asked
def test_without_tensors_there_is_no_torch(line: Workspace):
    program = (
        "import sys; from llmos_cli.app import run; code = run(['diff', 'base', '--no-tensors', '--json']);"
        "sys.exit(code or bool({'torch', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_quantized_against_dense(line: Workspace, tmp_path):
    """4-bit codes: fewer bits, the change is the rounding's, tensors of other names are not invented."""
    base = line.checkpoint("base")
    name = "model.layers.0.mlp.up_proj.weight"
    weight_OI = load(base.path).get_parameter(name).detach()
    scales_OG = weight_OI.abs().amax(1, keepdim=True) / 7
    codes = (weight_OI / scales_OG).round().clamp(-8, 7).to(torch.int8)
    write_quantized(tmp_path, base.path, {name.removesuffix(".weight"): Quantized(codes, scales_OG, bits=4)})
    other = Checkpoint("f" * 64, tmp_path, replace(base.manifest, tree={}))
    found = {weight.name: weight for weight in compare(base, other, emit=ignore)}
    assert set(found) == set(headers.of_directory(base.path))
    assert (found[name].before.bits, found[name].after.bits) == (32, 4)
    assert found[name].after.bytes < found[name].before.bytes / 4
    expected = (codes * scales_OG - weight_OI).norm() / weight_OI.norm()
    assert found[name].change == pytest.approx(float(expected), rel=1e-3)


def test_another_tokenizer(empty: Workspace, llmos):
    """Its size, what both have in common, and settings; without torch, and by their hashes where the files are gone."""
    make(empty, "causal-lm")
    one = committed(empty, "causal-lm")
    assert llmos("diff", one.id, one.id, "--no-tensors", "--json").json["processor"] == {
        "settings": [],
        "vocabulary": None,
    }
    other = committed(empty, "causal-lm", sets={"data.tokenizer.vocab_size": 310, "data.sequence_length": 16})
    tokenizers = [json.loads((each.path / "tokenizer.json").read_text())["model"]["vocab"] for each in (one, other)]
    found = llmos("diff", one.id, other.id, "--no-tensors", "--json").json["processor"]
    same = len(tokenizers[0].items() & tokenizers[1].items())
    assert found["vocabulary"] == {"before": 300, "after": 310, "same": same}
    assert found["settings"] == [{"key": "tokenizer_config.json: model_max_length", "before": 32, "after": 16}]
    told = llmos("diff", one.id, other.id, "--no-tensors").out
    assert re.search(r"^tokens +300 +310$", told, re.M)
    assert llmos("rm", "-f", one.id).code == 0
    assert llmos("gc", "--window", "now").code == 0
    gone = llmos("diff", one.id, other.id, "--no-tensors", "--json").json["processor"]
    assert {each["key"] for each in gone["settings"]} == {"tokenizer.json", "tokenizer_config.json"}
    assert gone["vocabulary"] is None


def test_a_change_within_the_intervals_is_told():
    def told(after: float, spread: float) -> str | None:
        sides = (1.0, (1 - spread, 1 + spread)), (after, (after - spread, after + spread))
        return _difference(MetricDiff("loss", "test", *sides[0], *sides[1]))

    assert told(1.1, 0.2) == "+10.00 %, in both intervals"
    assert told(1.1, 0.05) == "+10.00 %"
    assert _difference(MetricDiff("size", "test", 1.0, None, 1.1, None)) == "+10.00 %"


def test_a_models_own_module_is_code(line: Workspace, llmos):
    made = []
    for text in ("scale = 1\n", "scale = 2\n"):
        with line.begin("train", config={}) as run, line.stage() as staged:
            (staged / "my_model.py").write_text(text)
            made.append(run.commit(staged, line.checkpoint("base").manifest.made, move=False).id)
    ran = llmos("diff", *made, "--no-tensors", "--json", "-q")
    assert [each["key"] for each in ran.json["code"]] == ["my_model.py"]
    assert "my_model.py" not in json.dumps(ran.json["processor"])
