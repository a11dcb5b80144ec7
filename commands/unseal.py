"""Open a sealed checkpoint again."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, KeyOfSeal, QuietFlag, session


def unseal(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="The checkpoint.")] = "HEAD",
    with_lineage: Annotated[
        bool, typer.Option("--with-lineage", help="Open those too that share files with it.")
    ] = False,
    key_file: KeyOfSeal = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.unseal import unseal as operation

        s.ui.show(
            operation(
                s.workspace,
                rev,
                with_lineage=with_lineage,
                key_file=key_file,
                ask=s.ui.secret,
                dry_run=dry_run,
                emit=s.ui.emit,
            )
        )
