"""Show the log of a run or deployment, by its name, its id or a unique beginning of either."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def logs(
    name: Annotated[str, typer.Argument(help="A deployment's name, or a run's id.")],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on as it grows, until the run ends; lines of JSON with --json.")
    ] = False,
    last: Annotated[int | None, typer.Option("-n", "--last", min=0, help="Only the last N lines.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations import logs as operations

        if not follow:
            s.ui.show(operations.logs(s.workspace, name, last=last))
            return

        def say(line: str) -> None:
            s.ui.write(line)
            s.ui.close()

        operations.follow(s.workspace, name, events=json, last=last, say=say)
