"""Show, describe or check the configs of the verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import ConfigFiles, JsonFlag, QuietFlag, Sets, Unsets, session

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)

Verb = Annotated[str, typer.Argument(help="train, prune, quantize, tune, eval or deploy.")]


@app.command()
def show(
    verb: Verb = "train",
    config: ConfigFiles = None,
    set: Sets = None,
    unset: Unsets = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Print the config a verb would run with, each value with where it was set."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.config import show as operation

        s.ui.show(operation(s.workspace, verb, files=config or (), sets=set or (), unsets=unset or ()))


@app.command()
def schema(verb: Verb = "train", json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Print the JSON Schema of configs/VERB.yaml, for editors."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.config import schema as operation

        s.ui.show(operation(verb))


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="A config file; all of the workspace's when absent.")] = None,
    verb: Annotated[str | None, typer.Option(help="The file's verb; its name's stem when absent.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Check config files: unknown keys, wrong types, values out of range."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.config import check as operation

        s.ui.show(operation(s.workspace if file is None else None, file, verb=verb))
