"""Take back the last operation: branches, tags, HEAD, configs and removed weights return to what they were."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def undo(
    operation: Annotated[
        str | None, typer.Argument(metavar="ID", help="An operation of `llmos op log`; the last when omitted.")
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.undo import undo as take_back

        s.ui.show(take_back(s.workspace, operation))
