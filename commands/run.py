"""Run the stages of llmos.yaml's pipeline that are stale, in order, each only when something it depends on changed.

llmos run                        all of them
llmos run --dry-run              what would run, and why
llmos run small --jobs 2         the stage `small` and what it depends on, two at once
llmos run --cache-dir ../cache   what was made elsewhere, and kept there, is not made again
"""

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def run(
    stages: Annotated[list[str] | None, typer.Argument(metavar="[STAGE]...", help="All when absent.")] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Stages at once, where they are independent.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run the named stages though nothing changed.")] = False,
    cache_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Keep results there too, and look for them there: a folder, a URL or a remote."
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write stages and gates as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was done as Markdown.")] = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        workspace = s.workspace
        s.will_write(junit, summary)
        from llmos_cli.operations import run as operation
        from llmos_cli.operations.pipeline import telling
        from llmos_cli.operations.pipeline.looking import RunOptions

        options = RunOptions(jobs, fresh, cache_dir)
        if dry_run:
            result = operation.plan(workspace, stages or [], options, emit=s.ui.emit)
        else:
            result = operation.run(workspace, stages or [], options, ask=s.ui.confirm, emit=s.ui.emit)
        if junit:
            telling.write_junit(result, junit)
        if summary:
            telling.write_summary(result, summary)
        s.ui.show(result)
        if json and result.exit_code:
            raise typer.Exit(result.exit_code)  # what failed is in the JSON: one document, not two
        result.enforce()
