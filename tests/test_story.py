"""The whole job on a small budget, verb after verb in one workspace, for every task: what the demo types, and that it fits together."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

KINDS = {
    "causal-lm": ("causal-lm", [], "bits_per_byte <= 1.5 * base"),
    "image-classification": ("image-classification", [], "accuracy >= 0.5 * base"),
    "text-classification": ("text-classification", [], "accuracy >= 0.5 * base"),
    "text-classification with an LSTM": (
        "text-classification",
        ["model.arch=lstm", "model.hidden_size=16"],
        "accuracy >= 0.5 * base",
    ),
    "token-classification": ("token-classification", [], "accuracy >= 0.5 * base"),
}
"""Template, what is set differently, and a gate that holds."""

REQUESTS = {
    "causal-lm": ("/v1/completions", {"prompt": "The for statement", "max_tokens": 4}),
    "text-classification": ("/v1/predict", {"inputs": ["Return the path of a file."]}),
    "token-classification": ("/v1/predict", {"inputs": [["def", "main", "(", ")", ":"]]}),
    "image-classification": ("/v1/predict", {"inputs": [[[0] * 8] * 8]}),
}


@pytest.mark.timeout(900)  # a minute of computing each; a busy machine stretches it
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if "LSTM" in kind else ()) for kind in KINDS]
)
def test_the_whole_job(kind, new_workspace, tmp_path, llmos, monkeypatch):
    template, different, gate = KINDS[kind]
    root = new_workspace(tmp_path / "model", template).root
    monkeypatch.chdir(root)
    if different:
        widths = ", ".join(setting.removeprefix("model.").replace("=", ": ") for setting in different)
        replace_model(root, f"{{{widths}}}")

    def run(*words: str) -> Any:
        ran = llmos(*words, "--json", "--quiet")
        assert ran.code == 0, f"llmos {' '.join(words)}: {ran.err}"
        return json.loads(ran.out)

    run("tune", "--trials", "2", "--apply", "-s", "tune.space={train.learning_rate: [0.001, 0.002]}")
    base = run("train")["checkpoint"]
    run("tag", "base")
    small = ("-s", "heal.batch_size=4")
    run("prune", "--method", "wanda", "--sparsity", "0.5", "--heal", "2", "-s", "prune.calibration_samples=4", *small)
    method = (
        ["--method", "rtn", "--bits", "8"] if "LSTM" in kind or "image" in kind else ["--method", "gptq", "--bits", "4"]
    )
    run("quantize", *method, "-s", "quantize.group_size=-1", "-s", "quantize.calibration_samples=4")

    judged = run("eval", "base", "HEAD", "--require", gate)
    assert [each["rev"] for each in judged["evaluations"]] == ["base", "HEAD"]
    assert judged["evaluations"][1]["metrics"]["sparsity"]["value"] >= 0.4, "quantizing keeps the zeros"
    assert run("diff", "base", "HEAD")["schema"] == "llmos.diff/1"
    line = run("log")["checkpoints"]
    assert [each["operation"] for each in line] == ["quantize", "prune", "train"]
    assert line[-1]["names"] == ["base"]
    assert base in str(line[-1])
    assert run("fsck")["schema"] == "llmos.fsck/1"
    assert run("du")["usage"][0]["id"] == line[0]["id"]
    assert llmos("status").out.startswith("on branch main at ")
    if template == "causal-lm":
        assert run("generate", "HEAD", "-p", "The for statement", "--max-tokens", "4")["text"]

    served = run("deploy", "--port", "0", "--detach", "--name", "served", "-s", "deploy.warm=off")
    try:
        assert answer(served["url"] + "/ready", None) == 200
        path, body = REQUESTS[template]
        assert answer(served["url"] + path, body) == 200
        assert run("ps")["processes"][0]["name"] == "served"
        assert llmos("logs", "served").out
    finally:
        run("stop", "served")
    assert run("ps")["processes"] == []


def replace_model(root: Path, model: str) -> None:
    path = root / "configs" / "train.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"model: {model}" if line.startswith("model:") else line for line in lines) + "\n")


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
