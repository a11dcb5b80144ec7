"""export: a checkpoint in a format for others, hashed before, read back after, renamed into place."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from llmos_cli.core import atomic, outfile, own, storing
from llmos_cli.core.objects import files_below
from llmos_cli.core.processes import scratch_name
from llmos_cli.core.staging import discard, leftovers
from llmos_cli.core.view import Line, Lines, Span, View, short, size
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.errors import UsageError
from llmos_cli.models import headers, standalone
from llmos_cli.models.conformance import Conformance
from llmos_cli.operations.exporting.common import ExportOptions, Outcome
from llmos_cli.operations.proof import BF16_BYTES


@dataclass(frozen=True)
class ExportResult:
    """`bytes`: of all files, `weights`: of those that hold weights, `of_bf16`: the latter over 2 bytes a parameter;
    `difference`: the largest between a logit of the checkpoint and of the export on one input, as a share of the largest,
    0 where nothing changed; `conformance`: of quantized weights, by the rules of their format."""

    checkpoint: str
    path: str
    format: str
    bytes: int
    weights: int
    of_bf16: float
    difference: float
    code: str
    conformance: Conformance | None = None
    notes: tuple[str, ...] = ()

    def view(self) -> View:
        told = f" as {self.format} in {self.path}, {size(self.bytes)}; weights {self.of_bf16:.2f}x of bf16"
        lines: list[Line] = [(Span(short(self.checkpoint), "id"), told)]
        if self.difference:
            lines.append(f"read back: logits differ by {self.difference:.2g} of the largest at most")
        if self.conformance:
            lines.append(self.conformance.sentence)
        lines += self.notes
        if self.code:
            lines.append(f"with {self.code}: from_pretrained needs trust_remote_code=True, and not llmos")
        return Lines(lines)


_URL = re.compile(r"([a-z][a-z0-9+.-]+):/")
"""Of a path, in which `//` is one `/`."""
_UNFINISHED = ".exporting"
"""Begins the name of what is written beside its place; that of a process that was killed goes with the next export to that folder."""


def export(ws: Workspace, rev: str, output: Path, options: ExportOptions, *, dry_run: bool = False) -> ExportResult:
    """Check every file of the checkpoint against its hash, write beside `output`, read back, rename into place. A dry run
    does the same in the workspace's scratch folder, and renames nothing."""
    if url := _URL.match(str(output)):
        raise UsageError(
            f"an export is a folder or a file of this machine, and {url[1]}://... is a URL",
            hint="`llmos remote add` and `llmos push` take checkpoints elsewhere; or copy what is exported",
        )
    format = _format(options)
    checkpoint = ws.checkpoint(rev)
    storing.verify_content(checkpoint)
    output = output.absolute()
    if options.standalone:
        standalone.check(checkpoint.config_json())
    if _taken(output, format):
        raise UsageError(f"{output} exists already", hint="export to a new name, or remove it")
    own.require_other(output)
    if dry_run:
        with ws.stage() as staged:
            return _written(checkpoint, staged, output, options, format)
    for path in leftovers(output.parent):
        if path.name.startswith(_UNFINISHED):
            discard(path)
    unfinished = output.with_name(scratch_name(_UNFINISHED))
    try:
        with atomic.refusals(output):
            with outfile.refusals(output):
                atomic.make_directory(unfinished)
            result = _written(checkpoint, unfinished, output, options, format)
            _publish(unfinished, output, format)
            ws.oplog.note(f"export {checkpoint.id[:12]} to {output}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return result


def _format(options: ExportOptions) -> ModuleType:
    format = importlib.import_module(f"llmos_cli.operations.exporting.{options.format}")
    if options.type not in (None, *format.TYPES):
        there = f"{options.format} has {', '.join(format.TYPES) or 'one type only'}"
        raise UsageError(f"--type {options.type} is unknown", hint=there)
    if (options.dequantize or options.standalone) and options.format != "hf":
        raise UsageError(
            "--dequantize and --standalone are for hf", hint=f"leave them out of --format {options.format}"
        )
    return format


def _written(
    checkpoint: Checkpoint, unfinished: Path, output: Path, options: ExportOptions, format: ModuleType
) -> ExportResult:
    outcome: Outcome = format.write(checkpoint, unfinished, options)
    sizes = {name: (unfinished / name).stat().st_size for name in files_below(unfinished)}
    weights = sum(taken for name, taken in sizes.items() if name.endswith(format.SUFFIXES))
    dense = BF16_BYTES * headers.parameters(checkpoint.path)
    return ExportResult(
        checkpoint=checkpoint.id,
        path=str(output),
        format=options.format,
        bytes=sum(sizes.values()),
        weights=weights,
        of_bf16=weights / dense,
        difference=outcome.difference,
        code=outcome.code,
        conformance=outcome.conformance,
        notes=outcome.notes,
    )


def _taken(output: Path, format: ModuleType) -> bool:
    """Whether something is there already; an empty folder is a place for a directory, and none for a file."""
    free = not format.FILE and output.is_dir() and not any(output.iterdir())
    return os.path.lexists(output) and not free


def _publish(unfinished: Path, output: Path, format: ModuleType) -> None:
    for name in files_below(unfinished):
        atomic.sync_file(unfinished / name)
    if format.FILE:
        published = _publish_file(unfinished / format.FILE, output)
    else:
        published = atomic.publish(unfinished, output)
    if not published:
        raise UsageError(f"{output} appeared meanwhile", hint="export to a new name")


def _publish_file(file: Path, output: Path) -> bool:
    try:
        _name(file, output)
    except FileExistsError:
        return False
    atomic.sync_directory(output.parent)
    return True


def _name(file: Path, output: Path) -> None:
    """FileExistsError where the name is taken: a rename would replace what is there."""
    try:
        os.link(file, output)
    except FileExistsError:
        raise
    except OSError:  # a disk without links: the name is reserved first
        output.touch(exist_ok=False)
        file.replace(output)
