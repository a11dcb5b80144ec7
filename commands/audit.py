"""List who did what in this workspace, newest first.

llmos audit                 everything that moved a ref, removed, signed or exported something, was pushed or deployed
llmos audit --verify        exit 5 where a record was edited, removed or moved, naming the first, or all of it written anew since
                            you verified it last, or since --head was noted
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def audit(
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="How many.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check that each record follows the one before.")] = False,
    head: Annotated[
        str, typer.Option("--head", metavar="HASH", help="With --verify: a head that was noted before must be in it.")
    ] = "",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations import audit as operations

        s.ui.show(operations.verify(s.workspace, head=head) if verify else operations.audit(s.workspace, limit=limit))
