"""Make a checkpoint again from what was recorded of it, and compare every byte.

llmos reproduce            HEAD and all that it was made from, in a scratch workspace
llmos reproduce release    ends with 0 where every hash is the same, else with 1 and where it went apart
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def reproduce(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="The checkpoint.")] = "HEAD",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, changes=True) as s:
        from llmos_cli.operations.reproduce import reproduce as operation

        result = operation(s.workspace, rev, ask=s.ui.confirm, emit=s.ui.emit)
        s.ui.show(result)
        if json and not result.identical:
            raise typer.Exit(1)  # where it diverged is in the JSON: one document, not two
        result.enforce()
