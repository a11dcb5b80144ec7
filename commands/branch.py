"""List branches, or make, move, rename or delete one.

llmos branch              list them
llmos branch try base     a branch at `base`; `llmos checkout try` moves to it
llmos branch -m try best  rename it
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def branch(
    name: Annotated[str | None, typer.Argument(help="The branch; all of them are listed when omitted.")] = None,
    rev: Annotated[str, typer.Argument(help="Where it begins; with -m the new name.")] = "HEAD",
    delete: Annotated[bool, typer.Option("-d", "--delete", help="Delete the branch; its checkpoints stay.")] = False,
    rename: Annotated[bool, typer.Option("-m", "--rename", help="Rename the branch.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Move a branch that exists.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run, changes=name is not None) as s:
        from llmos_cli.operations import branch as operations

        if name is None:
            if delete or rename or force:
                raise UsageError("which branch?", hint="`llmos branch` lists them")
            s.ui.show(operations.branches(s.workspace))
        elif delete:
            s.ui.show(operations.delete_branch(s.workspace, name))
        elif rename:
            s.ui.show(operations.rename_branch(s.workspace, name, rev))
        else:
            s.ui.show(operations.branch(s.workspace, name, rev, force=force))
