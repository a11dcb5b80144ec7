"""Begin a workspace, with the configs of a template."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def init(
    directory: Annotated[Path, typer.Argument(help="The folder; made if needed.", show_default="here")] = Path(),
    template: Annotated[
        str,
        typer.Option(
            "--template", "-t", help="causal-lm, image-classification, text-classification or token-classification."
        ),
    ] = "causal-lm",
    shared: Annotated[
        str | None,
        typer.Option("--shared", metavar="GROUP", help="Let all of that group work in it, whatever their umask."),
    ] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.init import init as operation

        s.ui.show(operation(directory, template, shared=shared, dry_run=dry_run))
