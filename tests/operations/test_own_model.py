"""A model class of the user's own, `module: my_model.py:Net`, through every verb that reads or changes a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmos_cli.core.workspace import Workspace
from tests.conftest import TINY, Llmos

PICTURES = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class NetConfig(PreTrainedConfig):
    model_type = "net"

    def __init__(self, width=4, image_size=8, num_channels=1, **rest):
        super().__init__(**rest)
        self.width, self.image_size, self.num_channels = width, image_size, num_channels


class Net(PreTrainedModel):
    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv2d(config.num_channels, config.width, 3, padding=1)
        self.hidden = nn.Linear(config.width * config.image_size**2, 32)
        self.out = nn.Linear(32, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **rest):
        logits = self.out(self.hidden(self.conv(pixel_values).relu().flatten(1)).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
"""
TEXTS = """
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class NetConfig(PreTrainedConfig):
    model_type = "net"

    def __init__(self, width=4, vocab_size=300, **rest):
        super().__init__(**rest)
        self.width, self.vocab_size = width, vocab_size


class Net(PreTrainedModel):
    config_class = NetConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.hidden = nn.Linear(config.width, 32)
        self.out = nn.Linear(32, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **rest):
        logits = self.out(self.hidden(self.words(input_ids).mean(1)).relu())
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
"""


@pytest.fixture(
    params=[
        pytest.param(("image-classification", PICTURES), id="pictures"),
        pytest.param(("text-classification", TEXTS), id="texts", marks=pytest.mark.slow),
    ]
)
def own(request: Any, new_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: Any) -> Workspace:
    template, code = request.param
    ws = new_workspace(tmp_path / "model", template)
    config = yaml.safe_load(TINY[template]) | {"model": {"module": "my_model.py:Net", "width": 8}}
    (ws.configs / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (ws.root / "my_model.py").write_text(code)
    monkeypatch.chdir(ws.root)
    return ws


def test_from_training_to_an_export(own: Workspace, llmos: Llmos, tmp_path: Path) -> None:
    def run(*words: object, code: int = 0) -> Any:
        ran = llmos(*words, "--json", "-q")
        assert ran.code == code, ran.err
        return ran.json

    assert "llmos trust my_model.py" in run("train", code=5)["error"]["hint"]
    run("trust", "my_model.py")
    trained = run("train", "--dry-run")
    assert (trained["model"], trained["seconds"] > 0) == ("Net", True)
    assert run("train")["parameters"] == trained["parameters"]
    run("tag", "base")
    assert run("prune", "--heal", 2)["changed"] >= 1
    run("quantize", "--method", "rtn", "--bits", 8, "--group-size", -1)
    judged = run("eval", "base", "HEAD", "--require", "accuracy >= 0 * base", "-s", "eval.latency=false")
    assert judged["verdicts"][0]["passed"]
    config = json.loads((own.checkpoint().path / "config.json").read_text())
    assert config["width"] == 8 and (own.checkpoint().path / "my_model.py").is_file()

    run("export", "-o", tmp_path / "plain")
    assert run("export", "-o", tmp_path / "dense", "--dequantize")["difference"] == 0
    assert "my_model.py is your own" in run("export", "-o", tmp_path / "x", "--standalone", code=2)["error"]["message"]
    assert {"plain", "dense"} < {path.name for path in tmp_path.iterdir()} and not (tmp_path / "x").exists()
    assert run("train", "base", "--keep-branch", "-s", "model.freeze=backbone")["parent"] == own.resolve("base")
    (own.root / "my_model.py").write_text("raise SystemExit('changed')\n")
    run("eval", "base", "-s", "eval.latency=false")
    assert "llmos trust my_model.py" in run("train", code=5)["error"]["hint"]
