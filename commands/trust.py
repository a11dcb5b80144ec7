"""Let code of this workspace run: list a file's content as trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import JsonFlag, QuietFlag, session


def trust(
    file: Annotated[Path | None, typer.Argument(help="A file of code, such as my_model.py.")] = None,
    list: Annotated[bool, typer.Option("--list", help="Show what is trusted here.")] = False,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="The shell commands of llmos.yaml's pipeline, and the scripts they run.")
    ] = False,
    revoke: Annotated[str | None, typer.Option("--revoke", metavar="FILE", help="Trust FILE no more.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.trust import trust as operation

        if [file is not None, list, pipeline, revoke is not None].count(True) != 1:
            raise UsageError(
                "trust takes a FILE, --pipeline, --list or --revoke FILE",
                hint="`llmos trust --list` shows what is trusted",
            )
        s.ui.show(operation(s.workspace, file, pipeline=pipeline, revoke=revoke))
