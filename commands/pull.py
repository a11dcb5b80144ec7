"""Fetch, and move the current branch on to where the remote's is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def pull(
    remote: Annotated[str | None, typer.Argument(help="Its name; origin when omitted.")] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Move on to what this public key or certificate vouches for, or not at all."),
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="Bring kept data too (`llmos data snapshot`).")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.pull import pull as operation

        s.ui.show(operation(s.workspace, remote, trusted=require_signature, data=data, dry_run=dry_run, emit=s.ui.emit))
