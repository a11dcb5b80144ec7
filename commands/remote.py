"""List remotes, or add and remove them: other places that hold this workspace's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)


@app.callback()
def remote() -> None:
    pass


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What it is called here: `origin` is taken where no other is named.")],
    url: Annotated[str, typer.Argument(help="A folder (made when needed), sftp://host/folder, s3://bucket/folder.")],
    key_file: Annotated[
        Path | None,
        typer.Option("--key-file", metavar="FILE", help="Encrypt all of it with the key in FILE; made if needed."),
    ] = None,
    encrypted: Annotated[
        bool, typer.Option("--encrypted", help="Encrypt all of it with the key in LLMOS_KEY.")
    ] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Name a place in llmos.yaml; nothing is sent yet."""
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.remote import add as operation

        s.ui.show(operation(s.workspace, name, url, encrypted=encrypted, key_file=str(key_file or ""), emit=s.ui.emit))


@app.command()
def list(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """List them."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.remote import remotes

        s.ui.show(remotes(s.workspace))


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="The remote.")],
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Forget one; what is there stays there."""
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.remote import remove

        s.ui.show(remove(s.workspace, name))
