"""List tags, or give a checkpoint a name that stays where it is.

llmos tag                   list them
llmos tag base              HEAD is called `base` from now on
llmos tag -d base           forget the name, keep the checkpoint
llmos tag -d stages/old     the same of what a stage of the pipeline made last
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def tag(
    name: Annotated[str | None, typer.Argument(help="The tag; all of them are listed when omitted.")] = None,
    rev: Annotated[str, typer.Argument(help="What it names.")] = "HEAD",
    delete: Annotated[bool, typer.Option("-d", "--delete", help="Delete the tag.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Move a tag that exists.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run, changes=name is not None) as s:
        from llmos_cli.operations import tag as operations

        if name is None:
            if delete or force:
                raise UsageError("which tag?", hint="`llmos tag` lists them")
            s.ui.show(operations.tags(s.workspace))
        elif delete:
            s.ui.show(operations.delete_tag(s.workspace, name))
        else:
            s.ui.show(operations.tag(s.workspace, name, rev, force=force))
