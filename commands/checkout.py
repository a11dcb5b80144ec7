"""Move HEAD to a branch or a checkpoint, and with --configs bring back the configs it was made with."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def checkout(
    rev: Annotated[str, typer.Argument(help="A branch to be on, or a checkpoint (HEAD is detached then).")] = "HEAD",
    create: Annotated[
        str | None, typer.Option("-b", metavar="NAME", help="Make this branch at REV and move to it.")
    ] = None,
    configs: Annotated[
        bool, typer.Option("--configs", help="Restore the config files that made the checkpoint.")
    ] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite configs that were edited.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.checkout import checkout as operation

        s.ui.show(operation(s.workspace, rev, create=create, configs=configs, force=force))
