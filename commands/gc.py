"""Remove what nothing names any more: old checkpoints, unused objects, leftovers of killed processes."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def gc(
    expire: Annotated[
        str, typer.Option("--expire", metavar="AGE", help="Keep unnamed checkpoints this long: 30d, 12h, now.")
    ] = "30d",
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.gc import gc as operation

        s.ui.show(operation(s.workspace, expire=expire, dry_run=dry_run))
