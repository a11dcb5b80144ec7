"""Remove what nothing names any more: old checkpoints, unused objects, leftovers of killed processes."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def gc(
    expire: Annotated[
        str, typer.Option("--expire", metavar="AGE", help="Keep unnamed checkpoints this long: 30d, 12h, now.")
    ] = "30d",
    window: Annotated[
        str, typer.Option("--window", metavar="AGE", help="How far back undo reaches: what it needs is kept.")
    ] = "30d",
    keep_last: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Keep the weights of the last N on each branch, of what is tagged and what undo needs."
        ),
    ] = None,
    keep_tagged: Annotated[
        bool,
        typer.Option(
            "--keep-tagged", help="Keep the weights of what is tagged, the last on each branch and what undo needs."
        ),
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.gc import gc as operation

        s.ui.show(
            operation(
                s.workspace,
                expire=expire,
                window=window,
                keep_last=keep_last,
                keep_tagged=keep_tagged,
                dry_run=dry_run,
            )
        )
