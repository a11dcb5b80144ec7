"""Remove the weights of checkpoints; their manifests stay, so that lineage stays whole."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def rm(
    revs: Annotated[list[str], typer.Argument(metavar="REV...", help="The checkpoints.")],
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Even if a branch, a tag, HEAD or a deployment uses it.")
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.rm import rm as operation

        s.ui.show(operation(s.workspace, revs, force=force, dry_run=dry_run))
