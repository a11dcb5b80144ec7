"""One ONNX graph, in fp32 or with weights of int8, run by onnxruntime before it counts as written."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError
from transformers import PreTrainedModel

from llmos_cli.core.workspace import Checkpoint
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models.fp8 import Float8Linear
from llmos_cli.models.int8 import QuantizedLinear
from llmos_cli.models.load import load
from llmos_cli.operations.exporting.common import ExportOptions, Outcome, copy, difference, example, logits, others

TYPES = ("float32", "int8")
GRAPH = "model.onnx"
SUFFIXES = (".onnx", ".onnx.data")
FILE = ""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3
"""Largest change of a logit in fp32, as a share of the largest: sums in another order, and nothing more."""
LARGE = 1_500_000_000
"""Bytes of weights from which they stand beside the graph: a graph's own file ends at 2 GB."""


class Answer(nn.Module):
    """The model as a function of its inputs in order, with nothing but logits to give: no cache, no loss."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.options = {"use_cache": False} if model.can_generate() else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options).logits
        return answer


def write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> Outcome:
    """Export, quantize if asked, and compare logits on another batch and length than the graph was traced with."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"ONNX needs {' and '.join(missing)}", hint="pip install 'llmos-cli[onnx]'")
    model = load(checkpoint.path)
    _check(model)
    export_graph(model, target / GRAPH)
    exact = max(difference(logits(model, inputs), run(target / GRAPH, inputs)) for inputs in _questions(model))
    if not exact <= TOLERANCE:
        raise LlmosError(
            f"onnxruntime's logits differ by {exact:.2g} of the largest from the checkpoint's",
            hint="this is a defect of llmos: please report the model's config.json",
        )
    notes = [f"run by onnxruntime: logits within {exact:.1g} of the largest in fp32, at another batch and length too"]
    found = exact
    if options.type == "int8":
        _quantize(target / GRAPH)
        found = max(difference(logits(model, inputs), run(target / GRAPH, inputs)) for inputs in _questions(model))
        if not math.isfinite(found):
            raise LlmosError("in int8 the graph answers what is not finite", hint="export with --type float32")
        notes.append("int8 weights per channel, inputs of their products rounded to 8 bits as they come")
    copy(checkpoint, target, {*others(checkpoint), "config.json"})
    return Outcome(found, notes=tuple(notes))


def _check(model: PreTrainedModel) -> None:
    rounding = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if rounding is not None:
        kind = "fp8" if isinstance(rounding, Float8Linear) else "w8a8"
        raise UsageError(
            f"this checkpoint rounds its inputs ({kind}), which the graph would not do as it does",
            hint="export its parent with --format onnx --type int8",
        )


def _inputs(model: PreTrainedModel, rows: int = 2, length: int | None = None) -> dict[str, Tensor]:
    """An example, and for texts the mask, in which one sample ends early."""
    inputs = {name: value[:, :length] for name, value in example(model, rows).items()}
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][-1, -(inputs["input_ids"].shape[1] // 4) :] = 0
    return inputs


def _questions(model: PreTrainedModel) -> list[dict[str, Tensor]]:
    texts = "input_ids" in example(model)
    return [_inputs(model), _inputs(model, rows=5, length=7 if texts else None)]


def export_graph(model: PreTrainedModel, file: Path, large: int = LARGE) -> None:
    """Trace the model and write its graph; weights of more than `large` bytes stand beside it, in `file`.data."""
    inputs = _inputs(model, rows=3)
    names = tuple(inputs)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    free = tuple({0: batch} if name == "pixel_values" else {0: batch, 1: sequence} for name in names)
    size = sum(parameter.nbytes for parameter in model.parameters())
    with _quiet():
        try:
            program: Any = torch.onnx.export(
                Answer(model, names).eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(free,),
                verbose=False,
            )
        except OnnxExporterError as problem:  # what it has no node for is told by the first in the chain
            reason = str(problem.__cause__ or problem).strip().splitlines()[0]
            raise LlmosError(
                f"torch writes no graph of a {model.config.model_type}: {reason}", hint="export with --format hf"
            ) from problem
        program.save(file, external_data=size > large)


def _quantize(file: Path) -> None:
    """Weights of matrix products per output channel; replaces the graph in fp32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = file.with_name("float32.onnx")
    file.rename(plain)
    graph = onnx.load(plain)
    graph.graph.ClearField(
        "value_info"
    )  # shapes that the quantizer's own inference contradicts once it transposes weights
    # Unsigned: processors without VNNI add two products of unsigned inputs and signed weights in 16 bits, which overflow.
    with _quiet():
        quantize_dynamic(
            graph, file, per_channel=True, weight_type=QuantType.QUInt8, extra_options={"DefaultTensorType": 1}
        )
    plain.unlink()


def run(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """The graph's logits, by onnxruntime on the CPU; LlmosError where it refuses the graph: torch's exporter has fixed a length that should be free, say."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        answer = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.NotImplemented,
        failures.RuntimeException,
    ) as problem:
        raise LlmosError(
            f"onnxruntime does not run the graph of this model at another batch and length: {str(problem).splitlines()[0]}",
            hint="nothing was written; `llmos export` without --format keeps it as it is",
        ) from problem
    return torch.from_numpy(answer[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell their progress on both streams, and of their own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
