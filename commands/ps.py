"""List what is running: trainings, deployments, every operation that takes time."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def ps(
    all: Annotated[bool, typer.Option("-a", "--all", help="Every run there ever was, oldest first.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.ps import ps as operation

        s.ui.show(operation(s.workspace, all=all))
