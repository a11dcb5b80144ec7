"""Bring here what a remote has: its branches become `origin/main` and so on, and none of yours moves.

llmos fetch                       from origin
llmos fetch --weights HEAD~2      also the weights of HEAD~2, which were removed here
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def fetch(
    remote: Annotated[str | None, typer.Argument(help="Its name; origin when omitted.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="REV", help="Bring back the weights of REV, removed here; repeatable."),
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="Bring kept data too (`llmos data snapshot`).")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.fetch import fetch as operation

        s.ui.show(operation(s.workspace, remote, weights=weights or (), data=data, dry_run=dry_run, emit=s.ui.emit))
