"""Print the directory of a checkpoint, for transformers, vLLM and the shell."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def path(
    rev: Annotated[str, typer.Argument(help="The checkpoint.")] = "HEAD",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.path import path as operation

        s.ui.show(operation(s.workspace, rev))
