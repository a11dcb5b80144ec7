"""`quantize.rotation`: a plain checkpoint comes out whose dense weights answer as the parent's, or a sentence that says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.events import ignore
from llmos_cli.models.blocks import layers
from llmos_cli.models.load import load
from llmos_cli.models.shelf import Shelf
from llmos_cli.operations.compression.rotating import answers, rotated
from llmos_cli.operations.config import resolve
from llmos_cli.operations.eval import Exam, prepare
from llmos_cli.operations.proof import parity_inputs
from tests.operations.conftest import committed, make
from tests.operations.test_streaming import compressed

TURNED = ("-s", "quantize.rotation=hadamard", "--bits", "8", "--group-size", "32")


def uneven(model: Any) -> None:
    """Scales of norms that differ, and logits that do too."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.mul_(1 + 0.3 * torch.sin(torch.arange(len(parameter)).float()))
        if name.endswith("embed_tokens.weight"):
            parameter.mul_(10)


@pytest.fixture
def language_model(
    new_workspace: Callable[..., Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    ws = new_workspace(tmp_path / "workspace")
    monkeypatch.chdir(ws.root)
    make(ws, "causal-lm")
    committed(ws, "causal-lm", change=uneven)
    return ws


def test_a_rotated_checkpoint_is_plain_and_close(language_model: Workspace, llmos: Any) -> None:
    ran = llmos("quantize", *TURNED, "--method", "rtn", "--json")
    assert ran.code == 0, ran.err
    assert (
        "rotated: the embeddings cannot be the output layer any more, so lm_head.weight is stored by itself" in ran.err
    )
    assert ran.json["proof"]["after"]["kl_parent"]["value"] < 1e-3
    assert ran.json["proof"]["parity"]["reader"].startswith("transformers")
    config = json.loads((language_model.checkpoint().path / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    model = load(language_model.checkpoint().path)
    assert all((norm == 1).all() for name, norm in model.named_parameters() if name.endswith("norm.weight"))


Made = Callable[..., tuple[Path, torch.Tensor]]


@pytest.fixture
def quantized(language_model: Workspace, tmp_path: Path) -> Made:
    """The files, and what the result in memory answers."""

    def one(method: str, kind: Any, *, streams: bool = True) -> tuple[Path, torch.Tensor]:
        folder = tmp_path / f"{method}-{kind}-{streams}"

        def turned(exam: Exam) -> Path:
            return rotated(language_model, exam, kind, folder / "turned", seed=0, emit=ignore)

        flags = {"quantize.method": method}
        logits, _, _ = compressed(language_model, "quantize", flags, folder, streams=streams, rewritten=turned)
        return folder / "out", logits

    return one


@pytest.mark.parametrize("method", ["gptq", "w8a8"])
def test_streamed_and_in_memory_give_the_same_bytes(quantized: Made, method: str) -> None:
    (streamed, _), (whole, _) = quantized(method, "hadamard"), quantized(method, "hadamard", streams=False)
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert files == {file.name: file.read_bytes() for file in streamed.iterdir()}


def test_heads_alone_leave_the_tie(quantized: Made) -> None:
    folder, logits = quantized("rtn", "heads")
    again = load(folder)
    assert again.config.tie_word_embeddings and again.lm_head.weight is again.model.embed_tokens.weight
    assert logits.isfinite().all()


def test_healing_and_codes_that_learn_go_on_from_the_rotated_weights(language_model: Workspace, llmos: Any) -> None:
    ran = llmos("quantize", *TURNED, "--heal", "2", "-s", "heal.codes=true", "-s", "heal.batch_size=2", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["proof"]["after"]["kl_parent"]["value"] < 1e-3


def test_the_dense_rotation_answers_as_its_parent(language_model: Workspace, tmp_path: Path) -> None:
    """In fp32, as the parent is stored: nothing is lost but by rounding."""
    ws, cpu = language_model, torch.device("cpu")
    exam = prepare(ws, ws.checkpoint(), resolve(ws, "train").config.data, seed=0, emit=ignore)
    folder = rotated(ws, exam, "hadamard", tmp_path / "turned", seed=0, emit=ignore)
    shelves = [Shelf(path, cpu) for path in (exam.checkpoint.path, folder)]
    asked = parity_inputs(exam.prepared.splits["test"], shelves[0].model)
    before, after = (answers(shelf, asked) for shelf in shelves)
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    assert rotated(ws, exam, "off", tmp_path / "off", seed=0, emit=ignore) == exam.checkpoint.path


def test_a_pruned_parent_is_refused(language_model: Workspace, llmos: Any) -> None:
    def halve(model: Any) -> None:
        for layer in layers(model).values():
            layer.weight.data[:, ::2] = 0

    committed(language_model, "causal-lm", operation="prune", parents=(language_model.resolve(),), change=halve)
    for dry_run in ([], ["--dry-run"]):
        ran = llmos("quantize", *TURNED, *dry_run)
        assert ran.code == 2 and "50% of the weights of" in ran.err and "a rotation would fill them" in ran.err


def test_what_has_no_stream_is_refused_before_anything_is_done(empty: Workspace, llmos: Any) -> None:
    committed(empty, "image-classification")
    for more in ([], ["--dry-run"]):
        ran = llmos("quantize", "-s", "quantize.rotation=hadamard", *more)
        assert ran.code == 2 and "cannot be rotated: it" in ran.err, ran.err
