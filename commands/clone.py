"""Make a workspace with all that a remote has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, EncryptedRemote, JsonFlag, KeyOfRemote, QuietFlag, session


def clone(
    url: Annotated[str, typer.Argument(help="What was pushed to: a folder, sftp://..., s3://...")],
    directory: Annotated[Path, typer.Argument(help="The new workspace's folder.")],
    branch: Annotated[
        str | None, typer.Option("--branch", metavar="NAME", help="Begin on it; main when omitted.")
    ] = None,
    key_file: KeyOfRemote = None,
    encrypted: EncryptedRemote = False,
    data: Annotated[bool, typer.Option("--data", help="Bring kept data too (`llmos data snapshot`).")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.clone import clone as operation

        key = str(key_file or "")
        s.ui.show(
            operation(
                url,
                directory,
                branch=branch,
                encrypted=encrypted,
                key_file=key,
                data=data,
                dry_run=dry_run,
                emit=s.ui.emit,
            )
        )
