"""Show the line of ancestors of a checkpoint, or all checkpoints by time.

llmos log                           HEAD and what it was made from
llmos log --all --graph             every checkpoint, and which came from which
llmos log --metric bits_per_byte    how a metric moved along the line
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import JsonFlag, QuietFlag, session


def log(
    rev: Annotated[str | None, typer.Argument(help="Where to start; HEAD when omitted.")] = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", metavar="N", help="Show at most N checkpoints.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every checkpoint, newest first.")] = False,
    graph: Annotated[bool, typer.Option("--graph", help="Draw which came from which.")] = False,
    oneline: Annotated[bool, typer.Option("--oneline", help="Ids, stages and names only.")] = False,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Show how this metric moved.")] = None,
    split: Annotated[str | None, typer.Option(help="With --metric: measured on train, validation or test.")] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        if metric is not None:
            if not metric.strip():
                raise UsageError("--metric takes a name", hint="for example --metric loss")
            if graph or oneline:
                raise UsageError("--metric has a form of its own", hint="leave --graph and --oneline out")
            from llmos_cli.operations.course import course

            s.ui.show(course(s.workspace, metric, rev, split=split, limit=limit, everything=everything))
            return
        if split is not None:
            raise UsageError(
                "--split says which --metric is meant", hint="for example --metric loss --split validation"
            )
        from llmos_cli.operations.log import log as operation

        s.ui.show(operation(s.workspace, rev, limit=limit, everything=everything, graph=graph, oneline=oneline))
