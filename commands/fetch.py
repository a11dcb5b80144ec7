"""Bring here what a remote has: its branches become `origin/main` and so on, and none of yours moves."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def fetch(
    remote: Annotated[str | None, typer.Argument(help="Its name; origin when omitted.")] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.fetch import fetch as operation

        s.ui.show(operation(s.workspace, remote, dry_run=dry_run, emit=s.ui.emit))
