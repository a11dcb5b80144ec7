"""Stop a run or deployment: it saves its state, or finishes the requests that it has begun."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def stop(
    name: Annotated[str, typer.Argument(help="A deployment's name, or a run's id.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 60.0,
    kill: Annotated[bool, typer.Option("--kill", help="End it hard when it has not ended by then.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, changes=True) as s:
        from llmos_cli.operations.stop import stop as operation

        s.ui.show(operation(s.workspace, name, timeout=timeout, kill=kill))
