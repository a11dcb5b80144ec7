"""Sign a checkpoint with your private key (OpenSSF model signing).

llmos sign --key key.pem                                       HEAD, with a key
llmos sign base --key key.pem --certificate me.pem --chain ca.pem
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def sign(
    rev: Annotated[str, typer.Argument(help="The checkpoint.")] = "HEAD",
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your private key; LLMOS_SIGNING_PASSWORD opens one that is encrypted."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate of that key, to be verified by who issued it.")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Certificates between it and the root; repeatable.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep this signature, which model_signing made, instead.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the signature away instead.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations import sign as operations

        if remove:
            if key or certificate or chain or bundle:
                raise UsageError("--remove signs nothing", hint="leave the other options out")
            s.ui.show(operations.unsign(s.workspace, rev))
            return
        s.ui.show(operations.sign(s.workspace, rev, key=key, certificate=certificate, chain=chain or (), bundle=bundle))
