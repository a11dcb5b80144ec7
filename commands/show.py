"""Show everything known of a checkpoint: how it was made, its numbers, config, data and files."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def show(
    rev: Annotated[str, typer.Argument(help="The checkpoint, or the run that made it.")] = "HEAD",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.show import show as operation

        s.ui.show(operation(s.workspace, rev))
