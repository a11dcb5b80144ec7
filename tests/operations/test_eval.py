"""`llmos eval`: what it measures, what it remembers, whom it judges, and how it leaves."""

import json
import shutil
from xml.etree import ElementTree

import pytest
import torch

from llmos_cli import device
from llmos_cli.core import journal, kept
from llmos_cli.core.endings import closed
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Note
from llmos_cli.models.load import load
from llmos_cli.operations import lineage
from llmos_cli.operations.eval import notes_once
from llmos_cli.options.data import Columns, DataOptions
from llmos_cli.options.model import ModelOptions
from llmos_cli.tasks import load as load_task
from llmos_cli.tasks import scoring
from tests.operations.conftest import committed

QUICK = ("-s", "eval.latency=false", "-q")


def metrics(ran, rev="HEAD"):
    (evaluation,) = [e for e in ran.json["evaluations"] if e["rev"] == rev]
    return {name: measured["value"] for name, measured in evaluation["metrics"].items()}


def test_side_by_side(line: Workspace, llmos):
    ran = llmos("eval", "base", "HEAD", *QUICK)
    header, *rows = ran.out.splitlines()
    assert ran.code == 0
    assert header.split()[0] == "metric" and "base (" in header and "HEAD (" in header
    assert {"bits_per_byte", "perplexity", "kl_base", "size", "parameters"} <= {row.split()[0] for row in rows if row}
    assert "8 samples of the test split of builtin:pydoc" in ran.out


def test_numbers_agree_with_the_model(line: Workspace, llmos):
    measured = metrics(llmos("eval", "--json", *QUICK))
    ids = {rev: line.resolve(rev) for rev in ("HEAD", "HEAD~1", "base")}
    data = DataOptions(**line.manifest(ids["HEAD"]).made.config["data"])
    task = load_task("causal-lm")
    split = task.prepare(data, ModelOptions(), seed=0, cache=line.cache, processor=line.checkpoint().path).splits[
        "test"
    ]
    batch = split.batch(range(len(split)))
    logits = {
        rev: task.scored(scoring.forward(load(line.checkpoints / checkpoint), batch), batch)
        for rev, checkpoint in ids.items()
    }
    with torch.inference_mode():
        assert measured["loss"] == pytest.approx(float(scoring.cross_entropy(logits["HEAD"])), rel=1e-5)
        for name, rev in (("kl_parent", "HEAD~1"), ("kl_base", "base")):
            assert measured[name] == pytest.approx(float(scoring.kl(logits[rev], logits["HEAD"]).mean()), rel=1e-4)
    assert measured["sparsity"] == pytest.approx(0.5)
    weights = sum(path.stat().st_size for path in line.checkpoint().path.glob("*.safetensors"))
    assert measured["size"] == weights
    assert measured["compression"] == pytest.approx(2 * measured["parameters"] / weights)


def test_what_is_said_of_the_data_is_said_once():
    heard = []
    hear = notes_once(heard.append)
    for message in ("a", "b", "a"):
        hear(Note(message))
    assert [note.message for note in heard] == ["a", "b"]


def test_the_root_has_no_kl(line: Workspace, llmos):
    assert not {"kl_parent", "kl_base"} & set(metrics(llmos("eval", "base", "--json", *QUICK), "base"))


def test_the_same_evaluation_is_remembered(line: Workspace, llmos):
    first = llmos("eval", "HEAD", "--json", "-s", "seed=7", *QUICK).json["evaluations"][0]
    again = llmos("eval", "HEAD~0", "--json", "-s", "seed=7", *QUICK).json["evaluations"][0]
    assert (first["cached"], again["cached"]) == (False, True)
    assert again["run"] == first["run"] and again["metrics"] == first["metrics"] and again["rev"] == "HEAD~0"
    fresh = llmos("eval", "HEAD", "--fresh", "--json", "-s", "seed=7", *QUICK).json["evaluations"][0]
    assert not fresh["cached"] and fresh["run"] != first["run"]
    other = llmos("eval", "HEAD", "--split", "validation", "--json", "-s", "seed=7", *QUICK).json["evaluations"][0]
    assert not other["cached"] and other["metrics"]["loss"] != first["metrics"]["loss"]


@pytest.fixture
def own(line: Workspace, tmp_path, monkeypatch) -> Workspace:
    """A copy of the line, to be harmed."""
    shutil.copytree(line.root, tmp_path / "own", symlinks=True)
    monkeypatch.chdir(tmp_path / "own")
    return Workspace.find(tmp_path / "own")


def test_a_tokenizer_that_was_loaded_is_the_same_one(own: Workspace, llmos):
    """Going on from a checkpoint, and in checkpoints of others, where transformers noted how it had been loaded."""
    root = own.checkpoint("base")
    assert llmos("train", root.id, "-s", "train.max_steps=1", "-q").code == 0
    loaded = own.checkpoint("HEAD")
    configs = [each.manifest.tree["tokenizer_config.json"].sha256 for each in (root, loaded)]
    assert configs[0] == configs[1]
    with own.begin("train", config={}) as run, own.stage() as staged:
        shutil.copytree(root.path, staged, dirs_exist_ok=True)
        (staged / "manifest.json").unlink()
        noted = json.loads((staged / "tokenizer_config.json").read_text()) | {
            "is_local": True,
            "local_files_only": True,
        }
        (staged / "tokenizer_config.json").unlink()
        (staged / "tokenizer_config.json").write_text(json.dumps(noted))
        other = run.commit(staged, root.manifest.made, move=False)
    ran = llmos("eval", root.id, other.id, "-s", "eval.latency=false", "--json")
    assert ran.code == 0 and "different tokenizers" not in ran.err, ran.err
    assert {each["samples"] for each in ran.json["evaluations"]} == {8}
    assert llmos("diff", root.id, other.id, "--no-tensors", "--json").json["processor"]["settings"] == []


def forged(text: str, told: dict) -> str:
    """With another first digit in one number."""
    value = repr(told["metrics"]["bits_per_byte"]["value"])
    assert value in text
    return text.replace(value, f"0{value[1:]}")


def test_an_evaluation_that_was_edited_is_not_believed(own: Workspace, llmos):
    first = llmos("eval", "HEAD", "--json", "-s", "seed=8", *QUICK).json["evaluations"][0]
    file = own.root / "runs" / first["run"] / "evaluation.json"
    text = file.read_text()
    file.write_text(forged(text, first))
    again = llmos("eval", "HEAD", "--json", "-s", "seed=8", "--require", "bits_per_byte < 1", *QUICK)
    assert again.code == 3 and f"runs/{first['run']}/evaluation.json was edited" in again.err
    (judged,) = again.json["evaluations"]
    assert not judged["cached"] and judged["metrics"]["bits_per_byte"] == first["metrics"]["bits_per_byte"]
    told = llmos("fsck")
    assert told.code == 5 and f"runs/{first['run']}/evaluation.json" in told.out
    assert "is not what the run wrote" in told.out
    assert llmos("fsck", "--accept-loss", f"runs/{first['run']}/evaluation.json").code == llmos("fsck").code == 0


@pytest.mark.parametrize("nonsense", ["", "{", "[]", '{"key": 1}', "\xff"])
def test_what_is_no_evaluation_is_measured_again(own: Workspace, llmos, nonsense):
    ran = llmos("eval", "HEAD", "--json", "-s", "seed=8", *QUICK)
    file = own.root / "runs" / ran.json["evaluations"][0]["run"] / "evaluation.json"
    file.write_text(nonsense, encoding="latin1")
    again = llmos("eval", "HEAD", "--json", "-s", "seed=8", *QUICK)
    assert again.code == 0 and not again.json["evaluations"][0]["cached"]


def test_a_gate_asks_what_this_workspace_measured(own: Workspace, llmos, tmp_path, monkeypatch):
    """Whoever can write to a remote can put any number there, with hashes that fit."""
    first = llmos("eval", "HEAD", "--json", "-s", "seed=8", *QUICK).json["evaluations"][0]
    run = own.root / "runs" / first["run"]
    text = (run / "evaluation.json").read_text()
    rehashed(run, forged(text, first))
    own.ledger.path.unlink()
    assert llmos("remote", "add", "origin", tmp_path / "far").code == llmos("push", "--all", "-q").code == 0
    assert llmos("clone", tmp_path / "far", tmp_path / "copy").code == 0
    monkeypatch.chdir(tmp_path / "copy")
    copy = Workspace.find(tmp_path / "copy")
    assert (copy.root / "runs" / first["run"] / "evaluation.json").is_file() and llmos("fsck").code == 0
    asked = ("eval", "HEAD", "--json", "-s", "seed=8", "--require", "bits_per_byte < 1", *QUICK)
    believing = llmos(*asked, "--fetched")
    assert believing.code == 0 and believing.json["evaluations"][0]["run"] == first["run"]
    gate = llmos(*asked)
    assert gate.code == 3 and not gate.json["evaluations"][0]["cached"]
    again = llmos(*asked)
    assert again.code == 3 and again.json["evaluations"][0]["run"] == gate.json["evaluations"][0]["run"]


def rehashed(run, evaluation: str) -> None:
    """With another evaluation, as if it had written that."""
    (run / "evaluation.json").write_text(evaluation)
    told = b""
    for text in (run / "events.jsonl").read_bytes().splitlines(keepends=True):
        event = json.loads(text)
        if event["event"] == "ended":
            end = {key: value for key, value in event.items() if key not in ("bytes", "sha256")}
            text = closed(json.dumps(end) + "\n", told).encode()
        elif "evaluation.json" in event.get("files", ()):
            text = journal.line(kept.of({"evaluation.json": evaluation})).encode()
        told += text
    (run / "events.jsonl").write_bytes(told)


def test_an_evaluation_is_a_run_keyed_by_its_checkpoint(line: Workspace, llmos):
    evaluation = llmos("eval", "base", "--json", "--fresh", *QUICK).json["evaluations"][0]
    record = line.runs.find(evaluation["run"])
    assert (record.operation, record.status, record.checkpoint) == ("eval", "done", "")
    known = line.metrics(evaluation["checkpoint"])["bits_per_byte", "test"]
    told = evaluation["metrics"]["bits_per_byte"]
    assert (known.value, known.low, known.high) == (told["value"], told["low"], told["high"])
    assert told["low"] < told["value"] < told["high"]
    made = line.manifest(evaluation["checkpoint"]).made
    assert known.samples == made.data["splits"]["test"]["sha256"], "as it was trained on"


@pytest.mark.parametrize(
    ("requirement", "code", "says"),
    [
        ("bits_per_byte <= 1.5 * base", 0, ""),
        ("size <= size@base", 0, ""),
        ("bits_per_byte <= 0.1 * base", 3, "the gate failed: 'bits_per_byte <= 0.1 * base'"),
        ("f1 >= 0.5", 3, "nothing measured here is called f1"),
        ("bits_per_byte <= bass", 4, "no checkpoint is called 'bass'"),
        ("bits_per_byte => 1", 2, "is not METRIC OP BOUND"),
    ],
)
def test_gates(line: Workspace, llmos, requirement, code, says):
    ran = llmos("eval", "HEAD", "--require", requirement, *QUICK)
    assert ran.code == code
    assert says in ran.err and "Traceback" not in ran.err


def test_gates_judge_the_last_revision(line: Workspace, llmos):
    assert llmos("eval", "base", "HEAD", "--require", "kl_base > 0", *QUICK).code == 0
    assert llmos("eval", "HEAD", "base", "--require", "kl_base > 0", *QUICK).code == 3


def test_a_failed_gate_is_one_json_document(line: Workspace, llmos):
    ran = llmos("eval", "HEAD", "--json", "--require", "loss < 0", "--require", "loss > 0", *QUICK)
    assert ran.code == 3
    assert [verdict["passed"] for verdict in ran.json["verdicts"]] == [False, True]


def test_one_form_of_the_answer_at_a_time(line: Workspace, llmos):
    runs = len(line.runs.list())
    ran = llmos("eval", "HEAD", "--markdown", "--json", *QUICK)
    assert (ran.code, ran.json["error"]["message"]) == (2, "--json and --markdown are two forms of one answer")
    assert "hint: " in ran.err and len(line.runs.list()) == runs


def test_junit_and_markdown(line: Workspace, llmos, tmp_path):
    file = tmp_path / "gates.xml"
    ran = llmos("eval", "HEAD", "--markdown", "--junit", file, "--require", "loss < 0", "--require", "loss > 0", *QUICK)
    assert ran.code == 3
    suite = ElementTree.parse(file).getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failed, passed = suite.findall("testcase")
    assert failed.get("name") == "loss < 0" and failed.find("failure").get("message").startswith("loss is")
    assert passed.find("failure") is None
    lines = ran.out.splitlines()
    assert lines[0].startswith("| metric | `HEAD` (") and lines[1] == "| --- | ---: |"
    assert any(row.startswith("- **FAILED** `loss < 0`") for row in lines)


def test_a_classifier_has_a_row_for_each_class(digits: Workspace, llmos):
    evaluation = llmos("eval", "--json", *QUICK).json["evaluations"][0]
    assert {"accuracy", "macro_f1", "ece", "loss", "kl_base"} <= set(evaluation["metrics"])
    assert [row["label"] for row in evaluation["classes"]] == [str(digit) for digit in range(10)]
    assert sum(row["support"] for row in evaluation["classes"]) == evaluation["samples"] == 64
    remembered = llmos("eval", *QUICK)
    assert "measured before" in remembered.out and "precision" in remembered.out


def test_markdown_and_junit_have_the_classes_too(digits: Workspace, llmos, tmp_path):
    file = tmp_path / "gates.xml"
    rows = llmos("eval", "--json", *QUICK).json["evaluations"][0]["classes"]
    lines = llmos("eval", "--markdown", "--junit", file, "--require", "accuracy >= 0", *QUICK).out.splitlines()
    start = lines.index("| class | precision | recall | f1 | support |")
    assert lines[start - 1] == "" and lines[start + 1] == "| --- | ---: | ---: | ---: | ---: |"
    cells = [line.strip("| ").split(" | ") for line in lines[start + 2 : start + 12]]
    assert [(cell[0], int(cell[4])) for cell in cells] == [(row["label"], row["support"]) for row in rows]
    assert [float(cell[2]) for cell in cells] == pytest.approx([row["recall"] for row in rows], abs=1e-3)
    assert lines[start + 12 : start + 13] == [""] and lines[start + 13].startswith("- passed `accuracy >= 0`")
    properties = {each.get("name"): each.get("value") for each in ElementTree.parse(file).iter("property")}
    assert [float(properties[f"HEAD.{row['label']}.f1"]) for row in rows] == [row["f1"] for row in rows]


def test_an_unknown_option(line: Workspace, llmos):
    ran = llmos("eval", "HEAD", "-s", "eval.speed=3", *QUICK)
    assert ran.code == 2 and "speed" in ran.err


def test_what_nothing_compressed_yet(line: Workspace):
    pruned, base = line.resolve("HEAD~1"), line.resolve("base")
    assert lineage.uncompressed(line, line.resolve()).id == base
    assert lineage.uncompressed(line, pruned).id == base
    assert lineage.uncompressed(line, base).id == base


def test_effective_data(line: Workspace):
    head = line.resolve()
    recorded = lineage.effective_data(line, head, DataOptions())
    assert (recorded.source, recorded.sequence_length, recorded.max_eval_samples) == ("builtin:pydoc", 32, 8)
    fewer = lineage.effective_data(line, head, DataOptions(max_eval_samples=2))
    assert (fewer.source, fewer.max_eval_samples) == ("builtin:pydoc", 2)
    other = lineage.effective_data(line, head, DataOptions(source="mine.txt"))
    assert (other.source, other.task, other.sequence_length, other.max_eval_samples) == (
        "mine.txt",
        "causal-lm",
        32,
        None,
    )


TOLD = {"data.format": "json", "data.columns.image": "pixels", "data.columns.label": "kind"}


def own_pictures(ws: Workspace) -> str:
    """A table whose name does not say what it is, nor its header which columns they are."""
    rows = [{"id": i, "pixels": [[i % 7 * 30] * 4] * 4, "kind": "ab"[i % 2]} for i in range(40)]
    (ws.root / "rows.txt").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.txt"


def test_files_for_splits_are_read_as_the_training_data_were(empty: Workspace, llmos):
    """Their columns, and their format where the ending is the same; what is asked for is laid over that, key by key."""
    source = own_pictures(empty)
    base = committed(empty, "image-classification", sets={**TOLD, "data.source": source})
    same = lineage.effective_data(empty, base.id, DataOptions(splits={"test": "more.txt"}))
    assert (same.format, same.columns.image, same.columns.label) == ("json", "pixels", "kind")
    other = lineage.effective_data(
        empty, base.id, DataOptions(splits={"test": "x.parquet"}, columns=Columns(label="class"))
    )
    assert (other.format, other.columns.image, other.columns.label) == (None, "pixels", "class")
    elsewhere = lineage.effective_data(empty, base.id, DataOptions(source="more.txt"))
    assert (elsewhere.format, elsewhere.columns.image) == (None, None)
    ran = llmos("eval", "HEAD", "-s", f"data.splits.test={source}", *QUICK, "--json")
    assert ran.code == 0 and ran.json["evaluations"][0]["samples"] == 40, ran.err
    assert ran.json["source"] == source


def test_data_that_are_named_by_split_are_remembered(empty: Workspace):
    splits = {"train": own_pictures(empty), "test": "rows.txt"}
    told = {f"data.splits.{name}": file for name, file in splits.items()}
    (empty.configs / "train.yaml").write_text("model: {arch: mlp, hidden_size: 8}\n")
    base = committed(empty, "image-classification", sets={**TOLD, **told})
    assert lineage.effective_data(empty, base.id, DataOptions()).splits == splits


def test_measuring_time_and_memory(line: Workspace, llmos):
    ran = llmos("eval", "HEAD", "--json", "-q")
    measured = metrics(ran)
    assert 0 < measured["latency_p50"] <= measured["latency_p95"]
    assert measured["throughput"] > 0
    assert measured["peak_memory"] > device.compute_dtype().itemsize * measured["parameters"]
    assert json.loads((line.runs.find(ran.json["evaluations"][0]["run"]).path / "evaluation.json").read_text())["key"]


def test_a_cache_in_int8_is_judged(base, llmos) -> None:
    base()
    quick = ("-s", "eval.latency=false", "--json")
    plain = llmos("eval", *quick)
    rounded = llmos("eval", "-s", "eval.kv_cache=int8", "--require", "kl_cache < 0.001", *quick)
    assert rounded.code == 0, rounded.err
    found = rounded.json["evaluations"][0]["metrics"]
    assert 0 < found["kl_cache"]["value"] < 0.001
    assert found["loss"]["value"] != plain.json["evaluations"][0]["metrics"]["loss"]["value"]
    assert "kl_cache" not in llmos("eval", *quick).json["evaluations"][0]["metrics"]


def test_a_cache_that_is_not_there(base, llmos) -> None:
    base("image-classification")
    refused = llmos("eval", "-s", "eval.kv_cache=int8")
    assert refused.code == 2 and "only language models have a cache" in refused.err
