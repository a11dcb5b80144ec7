"""Send branches and tags to a remote, with their checkpoints, ancestors, evaluations and proofs.

llmos push                    the current branch, and the tags on its line
llmos push base --remote usb  a tag or another branch
llmos push --all              all branches and tags
llmos push --delete try/one   the remote has this branch or tag no more; yours stays
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def push(
    revs: Annotated[
        list[str] | None, typer.Argument(metavar="[REV]...", help="Branches and tags; HEAD's branch when omitted.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="All branches and tags.")] = False,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="NAME", help="Where to; origin when omitted.")
    ] = None,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Move branches and tags that are elsewhere there.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete these branches and tags there.")] = False,
    data: Annotated[bool, typer.Option("--data", help="Send kept data too (`llmos data snapshot`).")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations import push as operations

        if all and revs:
            raise UsageError("--all pushes every branch and tag", hint="leave it out, or the names")
        if delete:
            if all or not revs:
                raise UsageError("--delete takes the names of branches and tags", hint="`llmos push --delete try/one`")
            s.ui.show(operations.delete(s.workspace, revs, remote=remote, force=force, dry_run=dry_run, emit=s.ui.emit))
            return
        s.ui.show(
            operations.push(
                s.workspace,
                revs or (),
                everything=all,
                remote=remote,
                force=force,
                data=data,
                dry_run=dry_run,
                emit=s.ui.emit,
            )
        )
