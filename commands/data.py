"""Check data, keep what checkpoints were made with, and list what is kept."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import GateFailed
from llmos_cli.session import ConfigFiles, DryRunFlag, JsonFlag, QuietFlag, Sets, Unsets, session

app = typer.Typer(add_completion=False, rich_markup_mode=None, help=__doc__)

Require = Annotated[
    list[str] | None,
    typer.Option(metavar="'WHAT OP NUMBER'", help="Such as 'pii == 0', 'duplicates <= 10', repeatable; else exit 3."),
]


@app.callback()
def data() -> None:
    pass


@app.command()
def check(
    source: Annotated[str | None, typer.Argument(help="A source; what training would read when omitted.")] = None,
    pii: Annotated[bool, typer.Option("--pii", help="Look for personal data: addresses, numbers, keys.")] = False,
    require: Require = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Count rows that are empty, broken, there twice, or in two splits, and rows with personal data."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations import gate

        requirements = [gate.parse(text) for text in require or ()]
        resolved = s.resolve("train", files=config, sets=sets, unsets=unsets)

        from llmos_cli.operations.data_check import check as operation

        personal = pii or any(each.metric.partition(".")[0] == "pii" for each in requirements)
        result = operation(
            s.workspace, resolved, source=source, personal=personal, requirements=requirements, emit=s.ui.emit
        )
        s.ui.show(result)
        if json and not result.passed:
            raise typer.Exit(GateFailed.exit_code)  # the verdicts are in the JSON: one document, not two
        result.enforce()


@app.command()
def snapshot(
    rev: Annotated[str | None, typer.Argument(help="What was made with it; HEAD and its line when omitted.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="S", help="Keep this source, as training would read it now.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Call it so: `data.source: snapshot:NAME`.")] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Move a name that exists.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Keep every row that a checkpoint was made with, so that it can be made again when the source has changed or is gone."""
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.data import snapshot as operation

        result = operation(s.workspace, rev, source=source, name=name, force=force, dry_run=dry_run, emit=s.ui.emit)
        s.ui.show(result)
        if json and result.lost:
            raise typer.Exit(5)  # what was lost is in the JSON: one document, not two
        result.enforce()


@app.command()
def list(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """List the snapshots: of what, how large, and how many checkpoints were made with each."""
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.data import listed

        s.ui.show(listed(s.workspace))


@app.command()
def rm(
    snapshot: Annotated[str, typer.Argument(help="Its name, its id or the beginning of that.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Though checkpoints were made with it.")] = False,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Remove a snapshot and its names."""
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.data import remove

        s.ui.show(remove(s.workspace, snapshot, force=force, dry_run=dry_run))
