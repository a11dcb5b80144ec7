"""Graphs that onnxruntime has run before they count: every task, both types, any batch and length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.load import load
from llmos_cli.models.save import save
from llmos_cli.operations.exporting import onnx
from llmos_cli.operations.exporting.onnx import export_graph, run
from tests.models.conftest import make


def imported(llmos: Any, tmp_path: Path, arch: str, task: str) -> None:
    save(make(arch, task), tmp_path / "upstream", dtype=torch.bfloat16)
    assert llmos("import", tmp_path / "upstream", "--task", task).code == 0


def exported(llmos: Any, tmp_path: Path, arch: str, task: str, kind: str) -> Any:
    imported(llmos, tmp_path, arch, task)
    ran = llmos("export", "-o", tmp_path / "out", "--format", "onnx", "--type", kind, "--json")
    assert ran.code == 0, ran.err
    return ran.json


def answer(file: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0])


def test_an_image_classifier_in_both_types(workspace: Workspace, llmos: Any, tmp_path: Path) -> None:
    told = exported(llmos, tmp_path, "mlp", "image-classification", "float32")
    assert told["difference"] < 1e-5
    model = load(workspace.checkpoint("HEAD").path)
    pixels = {"pixel_values": torch.rand(7, 1, 8, 8)}
    with torch.inference_mode():
        expected = model(**pixels).logits
    torch.testing.assert_close(answer(tmp_path / "out" / "model.onnx", pixels), expected, rtol=1e-4, atol=1e-5)

    small = llmos("export", "-o", tmp_path / "int8", "--format", "onnx", "--type", "int8", "--json")
    assert small.code == 0, small.err
    assert 0 < small.json["difference"] < 0.05
    assert small.json["weights"] < 0.4 * told["weights"]
    assert [file.name for file in (tmp_path / "int8").glob("*.onnx")] == ["model.onnx"]
    assert llmos("export", "-o", tmp_path / "x", "--format", "onnx", "--type", "q4_0").code == 2

    with pytest.raises(LlmosError, match="onnxruntime does not run the graph"):
        run(tmp_path / "out" / "model.onnx", {"pixel_values": torch.rand(2, 1, 5, 5)})


def test_weights_too_many_for_one_file_stand_beside_it(tmp_path: Path) -> None:
    model = make("mlp", "image-classification")
    export_graph(model, tmp_path / "model.onnx", large=0)
    large = sum(parameter.nbytes for parameter in model.parameters() if parameter.dim() > 1)  # biases stay in the graph
    assert (tmp_path / "model.onnx.data").stat().st_size >= 0.9 * large > (tmp_path / "model.onnx").stat().st_size
    pixels = {"pixel_values": torch.rand(4, 1, 8, 8)}
    with torch.inference_mode():
        expected = model(**pixels).logits
    torch.testing.assert_close(answer(tmp_path / "model.onnx", pixels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "task"),
    [
        ("llama", "causal-lm"),
        ("cnn", "image-classification"),
        ("eurobert", "text-classification"),
        ("lstm", "text-classification"),
        ("bert", "token-classification"),
        ("lstm", "token-classification"),
    ],
)
def test_every_task(workspace: Workspace, llmos: Any, tmp_path: Path, arch: str, task: str) -> None:
    """In processes of their own, as users run it: torch traces an LSTM for the second time with its length fixed."""
    imported(llmos, tmp_path, arch, task)
    assert in_a_process(tmp_path / "out", "float32")["difference"] < 1e-4
    assert in_a_process(tmp_path / "int8", "int8")["difference"] < 0.2


def in_a_process(out: Path, kind: str) -> dict[str, Any]:
    words = ["export", "-o", str(out), "--format", "onnx", "--type", kind, "--json"]
    ran = subprocess.run([sys.executable, "-m", "llmos_cli", *words], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


@pytest.mark.parametrize("layer, kind", [(QuantizedLinear, "w8a8"), (Float8Linear, "fp8")])
def test_what_rounds_its_inputs_is_called_by_its_name(layer: type[QuantizedLinear], kind: str) -> None:
    with pytest.raises(UsageError, match=rf"rounds its inputs \({kind}\)"):
        onnx._check(torch.nn.Sequential(layer(4, 4)))
