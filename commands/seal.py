"""Keep a checkpoint encrypted, in the workspace too; its manifest stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def seal(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="The checkpoint.")] = "HEAD",
    with_lineage: Annotated[
        bool, typer.Option("--with-lineage", help="Seal those too that share files with it.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="The key is in FILE (made if needed), not in LLMOS_KEY."),
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.seal import seal as operation

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
