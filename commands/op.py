"""Look at the log of operations that moved branches, tags, HEAD or configs, or removed something."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.callback()
def op() -> None:
    pass


@app.command()
def log(
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=1, metavar="N", help="Show at most N operations.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show the operations, newest first: `llmos undo ID` takes one back."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.op import op_log

        s.ui.show(op_log(s.workspace, limit=limit))
