"""Copy the workspace to a remote: every checkpoint, runs, configs, branches, tags and the operation log.

Files beside llmos.yaml come along. Folders of your own (data/, src/), links and runs that are alive do not: it names them.

llmos backup                            to origin
llmos -C ~/models/mine backup -q        from cron: no progress, and the exit code tells
llmos fsck --remote origin              whether what was sent is still whole there: now and then
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def backup(
    remote: Annotated[str | None, typer.Argument(help="Its name; origin when omitted.")] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.backup import backup as operation

        s.ui.show(operation(s.workspace, remote, dry_run=dry_run, emit=s.ui.emit))
