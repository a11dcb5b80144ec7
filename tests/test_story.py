"""The whole job on a small budget, verb after verb in one workspace, for every task and architecture: what the demo types, that
it fits together, and that one verb's numbers are another's."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmos_cli.data import sources
from llmos_cli.options.data import DataOptions
from tests.conftest import TINY, Llmos

LANGUAGE = ("bits_per_byte <= 1.5 * base", "bits_per_byte <= 0.1 * base")
CLASSES = ("accuracy >= 0.5 * base", "accuracy > 2 * base")


@dataclass(frozen=True)
class Row:
    """One row of the matrix: `model` replaces the template's (None: as it is); `quantize`: the method, None for a model of nothing
    but embeddings and an output layer, which compressing leaves alone; `gates`: one that holds and one that does not;
    `jobs`: trials at once (each is a process, whose imports take longer than such a trial)."""

    template: str
    quantize: Sequence[str] | None
    gates: tuple[str, str]
    model: dict[str, Any] | None = None
    jobs: str = "2"


LSTM = {"arch": "lstm", "embedding_size": 16, "hidden_size": 16}
RTN, GPTQ, W8A8 = ("--method", "rtn", "--bits", "8"), ("--method", "gptq", "--bits", "4"), ("--method", "w8a8")

FAST = {
    "causal-lm, llama": Row("causal-lm", GPTQ, LANGUAGE),
    "image-classification, cnn": Row("image-classification", RTN, CLASSES, jobs="1"),
}
COLD = ("causal-lm, llama",)
"""Whose trials, proof, deployment and engine are processes that import everything themselves."""
SLOW = {
    "text-classification, bert": Row("text-classification", W8A8, CLASSES, jobs="1"),
    "token-classification, bert": Row("token-classification", GPTQ, CLASSES, jobs="1"),
    "text-classification, lstm": Row("text-classification", RTN, CLASSES, LSTM),
    "causal-lm, lstm": Row("causal-lm", RTN, LANGUAGE, LSTM),
    "image-classification, mlp": Row("image-classification", W8A8, CLASSES, {"arch": "mlp", "hidden_size": 32}),
    "text-classification, bag": Row("text-classification", None, CLASSES, {"arch": "bag", "hidden_size": 16}),
    "token-classification, lstm": Row("token-classification", RTN, CLASSES, LSTM),
}

COLUMNS = {
    "causal-lm": ("text",),
    "image-classification": ("image", "label"),
    "text-classification": ("text", "label"),
    "token-classification": ("tokens", "tags"),
}
REQUESTS = {
    "causal-lm": ("/v1/completions", {"prompt": "The for statement", "max_tokens": 4}),
    "image-classification": ("/v1/predict", {"inputs": [[[0] * 8] * 8]}),
    "text-classification": ("/v1/predict", {"inputs": ["Return the path of a file."]}),
    "token-classification": ("/v1/predict", {"inputs": [["def", "main", "(", ")", ":"]]}),
}
UNTIMED = ("-s", "eval.latency=false")


@dataclass
class Story:
    """A row's workspace while its story is told; `run` types a command and gives its JSON."""

    row: Row
    root: Path
    llmos: Llmos

    @property
    def operations(self) -> list[str]:
        """What made HEAD and its ancestors."""
        return ["train", "train", "train"] if self.row.quantize is None else ["quantize", "prune", "train"]

    def run(self, *words: str, code: int = 0) -> Any:
        ran = self.llmos(*words, "--json", "--quiet")
        assert ran.code == code, f"llmos {' '.join(words)}: {ran.code}, {ran.err}"
        return json.loads(ran.out)


@pytest.fixture
def story(row: Row, new_workspace: Callable[..., Any], tmp_path: Path, llmos: Llmos, monkeypatch: Any) -> Story:
    root = new_workspace(tmp_path / "model", row.template).root
    if row.model is not None:
        config = yaml.safe_load(TINY[row.template]) | {"model": row.model}
        (root / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.chdir(root)
    return Story(row, root, llmos)


@pytest.mark.timeout(900)  # a minute of computing each; a busy machine stretches it
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(
    "row",
    [
        *(pytest.param(row, id=name, marks=pytest.mark.cold if name in COLD else ()) for name, row in FAST.items()),
        *(pytest.param(row, id=name, marks=pytest.mark.slow) for name, row in SLOW.items()),
    ],
)
def test_the_whole_job(story: Story, tmp_path: Path) -> None:
    look_around(story)
    search(story)
    compress(story)
    judge(story)
    look_back(story)
    file = rows_of_the_test_split(story)
    predict(story, file)
    carry_to_another_workspace(story, file, tmp_path / "elsewhere")
    serve(story)
    tidy_up(story)


def look_around(story: Story) -> None:
    assert story.run("doctor")["device"]
    assert "configs/train.yaml" in story.run("config", "check")["files"]
    assert story.run("train", "--dry-run")["steps"] == 4
    assert story.llmos("status").out == "on branch main: no checkpoint yet, `llmos train` makes the first\n"


def search(story: Story) -> None:
    """`tune --apply` edits the config, `undo` takes that back and `redo` brings it again."""
    config = story.root / "configs" / "train.yaml"
    before = config.read_text()
    space = "tune.space={train.learning_rate: [0.002, 0.003]}"
    tuned = story.run(
        "tune", "--trials", "2", "--jobs", story.row.jobs, "--apply", "-s", space, "-s", "tune.pruner=none"
    )
    assert [trial["state"] for trial in tuned["trials"]] == ["complete", "complete"], tuned["trials"]
    after = config.read_text()
    assert yaml.safe_load(after)["train"]["learning_rate"] == tuned["applied"]["train.learning_rate"]
    assert story.run("undo")["operation"]["name"] == "undo tune --apply"
    assert config.read_text() == before
    story.run("redo")
    assert config.read_text() == after


def compress(story: Story) -> None:
    story.run("train")
    story.run("tag", "base")
    if story.row.quantize is None:
        for verb in ("prune", "quantize"):
            assert "no layer was changed: embedding; output layer" in story.run(verb, code=1)["error"]["message"]
            story.run("train", "HEAD", "-s", "train.max_steps=1")
        return
    few = ("-s", "heal.batch_size=4")
    story.run(
        "prune", "--method", "wanda", "--sparsity", "0.5", "--heal", "2", "-s", "prune.calibration_samples=4", *few
    )
    quantized = story.run("quantize", *story.row.quantize, "--group-size", "-1", "-s", "quantize.calibration_samples=4")
    assert quantized["method"] == story.row.quantize[1]


def judge(story: Story) -> None:
    holds, fails = story.row.gates
    judged = story.run("eval", "base", "HEAD", "--require", holds)
    assert [each["rev"] for each in judged["evaluations"]] == ["base", "HEAD"]
    if story.row.quantize is not None:
        assert judged["evaluations"][1]["metrics"]["sparsity"]["value"] >= 0.4, "quantizing keeps the zeros"
    refused = story.run("eval", "base", "HEAD", "--require", fails, code=3)
    assert [verdict["passed"] for verdict in refused["verdicts"]] == [False]


def look_back(story: Story) -> None:
    line = story.run("log")["checkpoints"]
    assert [each["operation"] for each in line] == story.operations
    assert line[-1]["names"] == ["base"]
    head = line[0]["id"]
    assert story.llmos("log", "--graph").out.startswith(f"* {head[:12]}  {story.operations[0]}")
    assert story.run("show", "HEAD")["checkpoint"]["parents"] == [line[1]["id"]]
    assert (Path(story.run("path", "HEAD")["path"]) / "config.json").is_file()
    assert story.run("diff", "base", "HEAD")["after"]["checkpoint"] == head
    assert story.run("status")["checkpoint"]["id"] == head
    assert story.run("du")["usage"][0]["id"] == head


def rows_of_the_test_split(story: Story) -> Path:
    """A dozen of them, or all where there are fewer, as a table of one's own."""
    config = yaml.safe_load(TINY[story.row.template])["data"]
    columns = COLUMNS[story.row.template]
    rows = sources.load(DataOptions(source=config["source"]), columns, cache=story.root / ".llmos/cache").splits["test"]
    lines = [{name: plain(rows[name][index]) for name in columns} for index in range(min(12, len(rows)))]
    file = story.root / "own.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def predict(story: Story, file: Path) -> None:
    """What is written for each row, counted again, is what `eval` measures on that file."""
    out = story.root / "out.jsonl"
    rows = len(file.read_text().splitlines())
    assert story.run("predict", "HEAD", str(file), "-o", str(out))["rows"] == rows
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["row"] for each in said] == list(range(rows))
    if story.row.template == "causal-lm":
        assert all(each["bits_per_byte"] > 0 for each in said)
        assert story.run("generate", "HEAD", "-p", "The for statement", "--max-tokens", "4")["text"]
        return
    truths = [truth for each in said for truth in as_list(each["truth"])]
    guesses = [guess for each in said for guess in as_list(each.get("tags", each.get("label")))]
    accuracy = sum(ours == theirs for ours, theirs in zip(guesses, truths, strict=True)) / len(truths)
    assert on_file(story, "HEAD", file)["accuracy"] == pytest.approx(accuracy)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def on_file(story: Story, rev: str, file: Path, *, at: Path | None = None) -> dict[str, float]:
    """The metrics of a revision on a file of its own, in this workspace or the one `at`."""
    length = f"data.sequence_length={yaml.safe_load(TINY[story.row.template])['data'].get('sequence_length', 256)}"
    source = ("-s", f"data.source={file}", "-s", f"data.splits.test={file}", "-s", length)
    with chdir(at or story.root):
        evaluated = story.run("eval", rev, *source, *UNTIMED)["evaluations"][0]["metrics"]
    return {name: metric["value"] for name, metric in evaluated.items()}


def carry_to_another_workspace(story: Story, file: Path, elsewhere: Path) -> None:
    """Exported and imported, the model gives the same numbers."""
    exported = elsewhere.with_name("exported")
    story.run("export", "base", "-o", str(exported))
    story.run("init", str(elsewhere), "--template", story.row.template)
    with chdir(elsewhere):
        story.run("import", str(exported))
    here, there = on_file(story, "base", file), on_file(story, "HEAD", file, at=elsewhere)
    assert here.keys() == there.keys() and "loss" in here
    assert there == pytest.approx(here, rel=1e-6)


def serve(story: Story) -> None:
    served = story.run("deploy", "--port", "0", "--detach", "--name", "served", "-s", "deploy.warm=off")
    try:
        assert answer(served["url"] + "/ready", None) == 200
        path, body = REQUESTS[story.row.template]
        assert answer(served["url"] + path, body) == 200
        assert story.run("ps")["processes"][0]["name"] == "served"
        assert story.llmos("logs", "served").out
    finally:
        story.run("stop", "served")
    assert story.run("ps")["processes"] == []


def tidy_up(story: Story) -> None:
    """A branch protects its checkpoint from `rm`; what no name holds goes, and nothing else is hurt."""
    head = story.run("path", "HEAD")["id"]
    pruned = story.run("branch", "try", "HEAD~1")["checkpoint"]
    story.run("checkout", "try")
    assert story.run("status")["head"] == {"branch": "try", "checkpoint": pruned}
    story.run("checkout", "main")
    assert story.run("path", "HEAD")["id"] == head
    assert "try" in story.run("rm", "try", code=2)["error"]["message"]
    story.run("branch", "--delete", "try")
    story.run("rm", pruned)
    weights = story.root / "checkpoints" / pruned / "config.json"
    assert weights.exists(), "`undo` could bring it back"
    assert story.run("show", pruned)["checkpoint"]["removed"]
    story.run("tag", "oops")
    story.run("undo")
    assert story.run("path", "oops", code=4)["error"]["code"] == 4
    assert story.run("gc", "--expire", "now", "--window", "now")["garbage"], "the trials' checkpoints"
    assert not weights.exists()
    assert [each["operation"] for each in story.run("log")["checkpoints"]] == story.operations
    assert story.run("fsck")["problems"] == []


def answer(url: str, body: Any) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for _ in range(50):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return int(response.status)
        except urllib.error.HTTPError as refused:
            if refused.code != 503:
                raise AssertionError(f"{url}: {refused.code} {refused.read().decode()}") from None
            time.sleep(0.2)
    raise AssertionError(f"{url} is not ready")


@pytest.mark.parametrize(  # those of language models are the demo's
    "template", [pytest.param(each, marks=pytest.mark.slow) if each == "causal-lm" else each for each in sorted(TINY)]
)
def test_the_shipped_configs_are_ready_to_use(template: str, tmp_path: Path, llmos: Llmos, monkeypatch: Any) -> None:
    """As `init` writes them: every file is right, and training could begin."""
    assert llmos("init", tmp_path / "model", "--template", template).code == 0
    monkeypatch.chdir(tmp_path / "model")
    checked = llmos("config", "check", "--json")
    written = sorted(f"configs/{file.name}" for file in Path("configs").glob("*.yaml"))
    assert (checked.code, sorted(checked.json["files"])) == (0, written)
    planned = llmos("train", "--dry-run", "--json", "-q")
    assert planned.code == 0, planned.err
    assert planned.json["task"] == template and planned.json["samples"] > 100
