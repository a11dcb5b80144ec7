"""Write a checkpoint for others: a Hugging Face directory, GGUF, GPTQ, ONNX, or sparse storage.

llmos export -o ../model                          a plain copy, hashes checked
llmos export base -o ../dense --dequantize        dense weights of a quantized checkpoint
llmos export -o ../net --standalone               one of our small architectures, for those without llmos
llmos export -o model.gguf --format gguf          its own codes where it is quantized, bf16 where it is dense
llmos export -o model.gguf --format gguf --type q4_k
llmos export -o ../gptq --format gptq             the older layout, of a quantized checkpoint
llmos export -o ../onnx --format onnx --type int8 a graph for onnxruntime
llmos export -o ../small --format sparse          zeros left out, for `llmos import`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session

TYPE_HELP = (
    "How weights are stored. hf: float32, bfloat16, float16; gguf: those, q8_0, q4_0, q4_1, q4_k; onnx: float32, int8."
)


def export(
    rev: Annotated[str, typer.Argument(help="The checkpoint.")] = "HEAD",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to; it must not exist.")] = None,
    format: Annotated[
        Literal["hf", "gguf", "gptq", "onnx", "sparse"],
        typer.Option("--format", help="hf, gguf, gptq, onnx or sparse."),
    ] = "hf",
    type: Annotated[str | None, typer.Option("--type", "--dtype", help=TYPE_HELP)] = None,
    dequantize: Annotated[bool, typer.Option("--dequantize", help="Write dense weights.")] = False,
    standalone: Annotated[bool, typer.Option("--standalone", help="Add the architecture's Python file.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        if output is None:
            raise UsageError("where to?", hint="`llmos export -o DIRECTORY`")
        workspace = s.workspace
        from llmos_cli.operations.export import export as operation
        from llmos_cli.operations.exporting.common import ExportOptions

        options = ExportOptions(format, dequantize, standalone, type)
        s.ui.show(operation(workspace, rev, output, options, dry_run=dry_run))
