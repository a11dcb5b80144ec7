"""Bring a workspace back from a backup, into a folder that is empty or not there yet.

One that was cut off or failed goes on when it is said again. Where the remote is damaged, `llmos fsck --remote NAME --repair` in a
workspace that still has good copies sends those again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, EncryptedRemote, JsonFlag, KeyOfRemote, QuietFlag, session


def restore(
    url: Annotated[str, typer.Argument(help="What was backed up to: a folder, sftp://..., s3://...")],
    directory: Annotated[Path, typer.Argument(help="The workspace's folder.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="The last backup whose name begins so: 20261122-03.")
    ] = None,
    key_file: KeyOfRemote = None,
    encrypted: EncryptedRemote = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.restore import restore as operation

        key = str(key_file or "")
        s.ui.show(operation(url, directory, at=at, encrypted=encrypted, key_file=key, dry_run=dry_run, emit=s.ui.emit))
