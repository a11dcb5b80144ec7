"""Every quantizing method on a model of every task, and on models that are hard to quantize: files that reload and answer, or one
sentence that says why not."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.events import ignore
from llmos_cli.methods import quantize as methods
from llmos_cli.models.load import load
from llmos_cli.operations import quantize
from llmos_cli.operations.compression.coded import Coded
from llmos_cli.operations.compression.coding import coding, rounding, whole_blocks
from llmos_cli.operations.compression.form import form_of
from llmos_cli.operations.compression.keeping import keeping
from llmos_cli.operations.compression.subject import calibration, method, subject
from llmos_cli.operations.compression.sweep import Change, sweep
from llmos_cli.operations.config import resolve
from llmos_cli.operations.init import init
from llmos_cli.tasks import scoring
from tests.operations.conftest import committed
from tests.operations.test_streaming import MODELS, TEXT

FIRST = ("gptq", "smoothquant")
METHODS = [
    pytest.param(name, marks=() if name in FIRST else pytest.mark.slow)
    for _, name, _ in pkgutil.iter_modules(methods.__path__)
]
ODD = (
    "{arch: qwen2, hidden_size: 72, intermediate_size: 200, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, tie_word_embeddings: true}"
)
"""Queries in groups, biases, a tied head, sides that no group of 128 or 32 divides."""
KINDS = {**MODELS, "odd": ("causal-lm", ODD, TEXT)}


@pytest.fixture
def workspace_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workspace]:
    def make(
        kind: str, change: Callable[[Any], None] = lambda model: None, dtype: torch.dtype = torch.bfloat16
    ) -> Workspace:
        task, model, data = KINDS[kind]
        init(tmp_path / "workspace", task)
        monkeypatch.chdir(tmp_path / "workspace")
        ws = Workspace.find()
        (ws.configs / "train.yaml").write_text(f"seed: 0\nmodel: {model}\ndata: {data}\n")
        committed(ws, task, change=change, dtype=dtype)
        return ws

    return make


def quantized(
    ws: Workspace, name: str, folder: Path, samples: int = 8, **sets: Any
) -> tuple[PreTrainedModel, dict[str, Change], float]:
    """The model as its files say, what was done to each matrix, and the largest difference of a logit to what was in memory."""
    own = {"quantize.autoround.iterations": 3} if name == "autoround" else {}
    resolved = resolve(
        ws, "quantize", flags={"quantize.method": name, "quantize.calibration_samples": samples, **own, **sets}
    )
    options = resolved.config.quantize
    module, section = method("quantize", options)
    form = form_of(resolved, module)
    parent = subject(ws, ws.checkpoint("HEAD"), resolved, options.ignore, streams=True, emit=ignore)
    batches = calibration(parent, samples, module.NEEDS, seed=0).batches
    coded: dict[str, Coded] = {}
    with keeping(parent, folder / "state", coded, rounds_inputs=rounding(module)) as kept:
        compress = coding(parent, module, section, form, coded)
        hooks = whole_blocks(parent, module, section, form, coded, seed=0)
        changes = sweep(
            parent, batches, compress, module.NEEDS, hooks=hooks, keeper=kept, changes=kept.changes, stage="q", emit=ignore
        )  # fmt: skip
        quantize.write_codes(ws, kept, coded, module, folder / "out")
        there = kept.logits()
    model = load(folder / "out")
    here = scoring.forward(model, parent.asked).float()
    assert torch.isfinite(here).all()
    return model, changes, float((here - there).abs().max() / there.abs().max().clamp_min(1e-6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_every_task(
    workspace_of: Callable[..., Workspace], tmp_path: Path, name: str, kind: str
) -> None:
    """What has no quantized format (an LSTM's weights have one of ours) or is never reached is named; the rest is written."""
    _, changes, difference = quantized(workspace_of(kind), name, tmp_path)
    assert any(not change.skipped for change in changes.values())
    assert difference < 1e-4


def dead_channels(model: Any) -> None:
    model.model.embed_tokens.weight[:, 5] = 0
    model.model.layers[0].input_layernorm.weight[3:9] = 0


def constant_inputs(model: Any) -> None:
    """Every token is embedded alike."""
    model.model.embed_tokens.weight[:] = model.model.embed_tokens.weight[0].clone()


def outliers(model: Any) -> None:
    model.model.layers[0].input_layernorm.weight[3] = 300
    model.model.layers[1].post_attention_layernorm.weight[7] = -2000
    model.model.layers[1].mlp.up_proj.weight[11] *= 200


def zeros(model: Any) -> None:
    """Projections that answer nothing: what comes after them is given zeros alone."""
    model.model.layers[0].mlp.gate_proj.weight[:] = 0
    model.model.layers[1].self_attn.v_proj.weight[:] = 0
    model.model.layers[1].self_attn.v_proj.bias[:] = 0


@pytest.mark.parametrize("change", [dead_channels, constant_inputs, outliers, zeros])
@pytest.mark.parametrize("name", METHODS)
def test_strange_weights(
    workspace_of: Callable[..., Workspace], tmp_path: Path, name: str, change: Callable[[Any], None]
) -> None:
    _, changes, difference = quantized(workspace_of("odd", change), name, tmp_path)
    assert not any(change.skipped for change in changes.values())
    assert difference < 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_one_row_of_eight_tokens_from_a_parent_in_fp16(
    workspace_of: Callable[..., Workspace], tmp_path: Path, name: str
) -> None:
    ws = workspace_of("odd", dtype=torch.float16)
    _, changes, difference = quantized(ws, name, tmp_path, 1, **{"data.sequence_length": 8})
    assert not any(change.skipped for change in changes.values())
    assert difference < 1e-4


def not_a_number(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight[4, 4] = torch.nan


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_no_numbers_are_named(
    workspace_of: Callable[..., Workspace], tmp_path: Path, name: str
) -> None:
    with pytest.raises(LlmosError, match=r"layers\.1\.mlp\.down_proj\.weight holds values that are not finite"):
        quantized(workspace_of("odd", not_a_number), name, tmp_path)


def overflowing(model: Any) -> None:
    model.model.layers[1].input_layernorm.weight[:] = 3e38


@pytest.mark.parametrize("name", ["gptq"])
def test_inputs_that_overflow_are_told(workspace_of: Callable[..., Workspace], tmp_path: Path, name: str) -> None:
    with pytest.raises(LlmosError, match="not finite"):
        quantized(workspace_of("odd", overflowing), name, tmp_path)
