"""export: a checkpoint as a directory (or one GGUF file) for others, hashed before and compared after."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmos_cli.core import atomic, storing
from llmos_cli.core.objects import files_below
from llmos_cli.core.view import Line, Lines, Span, View, short, size
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.models import conformance, gguf_file, standalone
from llmos_cli.models.conformance import Conformance
from llmos_cli.models.load import load, load_config
from llmos_cli.models.save import save

TOLERANCE = 0.02
"""Largest change of a logit that storing dequantized weights in 16 bits may cause, as a share of the largest logit."""


@dataclass(frozen=True)
class ExportOptions:
    """`dequantize`: write dense weights; `standalone`: add the Python file of one of our architectures (dense weights too);
    `dtype`: of dense weights or of the GGUF tensors, `q8_0` for the latter."""

    format: Literal["hf", "gguf"] = "hf"
    dequantize: bool = False
    standalone: bool = False
    dtype: str | None = None


@dataclass(frozen=True)
class ExportResult:
    """`difference`: the largest between a logit of the checkpoint and of the export on one input, as a share of the largest;
    0 where files were copied; `conformance`: of quantized weights, by the rules of their format."""

    checkpoint: str
    path: str
    format: str
    bytes: int
    difference: float
    code: str
    conformance: Conformance | None = None

    def view(self) -> View:
        lines: list[Line] = [
            (Span(short(self.checkpoint), "id"), f" as {self.format} in {self.path}, {size(self.bytes)}")
        ]
        if self.difference:
            lines.append(f"read back: logits differ by {self.difference:.2g} of the largest at most")
        if self.conformance:
            lines.append(self.conformance.sentence)
        if self.code:
            lines.append(f"with {self.code}: from_pretrained needs trust_remote_code=True, and not llmos")
        return Lines(lines)


def export(ws: Workspace, rev: str, output: Path, options: ExportOptions, *, dry_run: bool = False) -> ExportResult:
    """Check every file of the checkpoint against its hash, write beside `output`, read back, rename into place. A dry run
    does the same in the workspace's scratch folder, and renames nothing."""
    checkpoint = ws.checkpoint(rev)
    storing.verify_content(checkpoint)
    output = output.absolute()
    if options.standalone:
        standalone.check(checkpoint.config_json())
    if _taken(output, options):
        raise UsageError(f"{output} exists already", hint="export to a new name, or remove it")
    if dry_run:
        with ws.stage() as staged:
            return _written(checkpoint, staged, output, options)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with atomic.refusals(output):
            atomic.make_directory(unfinished)
            result = _written(checkpoint, unfinished, output, options)
            _publish(unfinished, output, options)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return result


def _written(checkpoint: Checkpoint, unfinished: Path, output: Path, options: ExportOptions) -> ExportResult:
    difference, code = _write(checkpoint, unfinished, options)
    taken = sum((unfinished / name).stat().st_size for name in files_below(unfinished))
    conforms = conformance.check(unfinished) if options.format == "hf" else None
    return ExportResult(checkpoint.id, str(output), options.format, taken, difference, code, conforms)


def _taken(output: Path, options: ExportOptions) -> bool:
    """Whether something is there already; an empty folder is a place for a directory, and none for a GGUF file."""
    free = options.format != "gguf" and output.is_dir() and not any(output.iterdir())
    return os.path.lexists(output) and not free


def _write(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> tuple[float, str]:
    if options.format == "gguf":
        return _write_gguf(checkpoint.path, target / "model.gguf", options), ""
    if not (options.dequantize or options.standalone or options.dtype):
        _copy(checkpoint, target, checkpoint.manifest.tree)
        return 0.0, ""
    return _write_dense(checkpoint, target, options)


def _write_dense(checkpoint: Checkpoint, target: Path, options: ExportOptions) -> tuple[float, str]:
    model = load(checkpoint.path)
    save(model, target, dtype=getattr(torch, options.dtype) if options.dtype else _stored_dtype(checkpoint.path))
    weights = {name for name in checkpoint.manifest.tree if name.endswith((".safetensors", ".index.json"))}
    _copy(checkpoint, target, set(checkpoint.manifest.tree) - weights - {"config.json"})
    difference = _difference(model, load(target))
    if difference > TOLERANCE:
        raise LlmosError(
            f"the export's logits differ by {difference:.2g} of the largest from the checkpoint's",
            hint="export with --dtype float32",
        )
    return difference, standalone.write(target) if options.standalone else ""


def _write_gguf(source: Path, file: Path, options: ExportOptions) -> float:
    model = load(source)
    gguf_file.write(model, source, file, dtype=options.dtype or "bfloat16")
    return _difference(model, gguf_file.read(file))


def _difference(one: PreTrainedModel, other: PreTrainedModel) -> float:
    """Between the logits of two models on one input, as a share of the largest."""
    inputs = _example(one)
    with torch.inference_mode():
        first, second = one(**inputs).logits, other(**inputs).logits
    return float((first - second).abs().max() / first.abs().max())


def _example(model: PreTrainedModel) -> dict[str, Tensor]:
    """One input of the right shape; noise will do, for both models see the same."""
    generator = torch.Generator().manual_seed(0)
    if (
        "pixel_values" in inspect.signature(model.forward).parameters
    ):  # `main_input_name` says ids unless a class says otherwise
        side, channels = model.config.image_size, model.config.num_channels
        return {"pixel_values": torch.rand(2, channels, side, side, generator=generator)}
    length = min(64, getattr(model.config, "max_position_embeddings", 64))
    return {"input_ids": torch.randint(0, model.config.vocab_size, (2, length), generator=generator)}


def _stored_dtype(path: Path) -> torch.dtype:
    stored = load_config(path).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _copy(checkpoint: Checkpoint, target: Path, names: Iterable[str]) -> None:
    for name in names:
        atomic.make_directory((target / name).parent)
        shutil.copyfile(checkpoint.path / name, target / name)


def _publish(unfinished: Path, output: Path, options: ExportOptions) -> None:
    for name in files_below(unfinished):
        atomic.sync_file(unfinished / name)
    if options.format == "gguf":
        published = _publish_file(unfinished / "model.gguf", output)
    else:
        published = atomic.publish(unfinished, output)
    if not published:
        raise UsageError(f"{output} appeared meanwhile", hint="export to a new name")


def _publish_file(file: Path, output: Path) -> bool:
    """Rename `file`, unless the name is taken: it is reserved first, for a rename would replace what is there."""
    try:
        output.touch(exist_ok=False)
    except FileExistsError:
        return False
    file.replace(output)
    atomic.sync_directory(output.parent)
    return True
