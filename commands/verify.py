"""Verify that a checkpoint is what somebody you trust has signed; exit 5 where it is not.

llmos verify --key public.pem             HEAD, by the signer's public key
llmos verify base --key ca.pem            by the root above the signer's certificate
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def verify(
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The public key, or the root certificate above the signer's.")
    ],
    rev: Annotated[str, typer.Argument(help="The checkpoint.")] = "HEAD",
    signature: Annotated[
        Path | None, typer.Option(metavar="FILE", help="This signature, not the one that the workspace has.")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.verify import verify as operation

        s.ui.show(operation(s.workspace, rev, key=key, signature=signature))
