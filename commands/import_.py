"""Make a checkpoint of a model from elsewhere: a Hugging Face directory, a hub id, a GGUF file, a .bin or .pt state dict.

llmos import ../SmolLM2-135M                    a directory as on the hub
llmos import HuggingFaceTB/SmolLM2-135M         a hub id (needs network, or the hub's cache)
llmos import model.Q8_0.gguf                    dequantized to bf16
llmos import bert-base --task text-classification      a new head, to be trained
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session

DTYPES = ("float32", "bfloat16", "float16")


def import_(
    source: Annotated[str, typer.Argument(help="A directory, a weights file or a hub id.")],
    file: Annotated[str | None, typer.Option("--file", help="Which weights file, where there are several.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Give it the head of this task.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Store weights as float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of a new head.")] = 0,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        if dtype is not None and dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype} is unknown", hint=f"there are {', '.join(DTYPES)}")
        workspace = s.workspace
        from llmos_cli import tasks
        from llmos_cli.operations.import_ import ImportOptions
        from llmos_cli.operations.import_ import import_ as operation

        if task is not None:
            tasks.load(task)
        options = ImportOptions(file, revision, task, dtype, seed)
        s.ui.show(operation(workspace, source, options, dry_run=dry_run, emit=s.ui.emit))
