"""Show the line of ancestors of a checkpoint, or all checkpoints by time.

llmos log                  HEAD and what it was made from
llmos log --all --graph    every checkpoint, and which came from which
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def log(
    rev: Annotated[str | None, typer.Argument(help="Where to start; HEAD when omitted.")] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", help="Show at most N checkpoints.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every checkpoint, newest first.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Draw which came from which.")] = False,
    oneline: Annotated[bool, typer.Option("--oneline", help="Ids, stages and names only.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.log import log as operation

        s.ui.show(operation(s.workspace, rev, limit=limit, everything=everything, graph=graph, oneline=oneline))
