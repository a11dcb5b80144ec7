"""Compare two checkpoints: config, data, environment, metrics, and every layer's weights."""

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="The checkpoint to compare from.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The checkpoint to compare to.")] = "HEAD",
    no_tensors: Annotated[
        bool, typer.Option("--no-tensors", help="Leave the weights unread: at once, without torch.")
    ] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.diff import diff as operation

        s.ui.show(operation(s.workspace, before, after, weights=not no_tensors, emit=s.ui.emit))
