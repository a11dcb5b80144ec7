"""Find the first checkpoint of a line that breaks a gate, by halving.

llmos bisect --require 'bits_per_byte <= 1.05 * base'            HEAD and what it was made from
llmos bisect --require 'accuracy >= 0.9' --since base release    from `base` on up to `release`
llmos bisect --require 'accuracy >= 0.9' v1 v2 v3 v4             these, in this order
llmos bisect --require 'accuracy >= 0.9' --dry-run               what it would look at, what is measured, what the rest takes
"""

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import ConfigFiles, DryRunFlag, JsonFlag, QuietFlag, Sets, Unsets, session


def bisect(
    revs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REV]...", help="The end of the line, HEAD when absent; or several, oldest first."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="'METRIC OP BOUND'", help="What held once, such as 'loss <= 1.05 * base'; repeatable."),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="REV", help="The ancestor that the line begins at.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run, changes=False) as s:
        from llmos_cli.operations import gate

        flags = {"eval.require": require, "eval.split": split}
        resolved = s.resolve("eval", files=config, sets=sets, unsets=unsets, flags=flags)
        requirements = [gate.parse(text) for text in resolved.config.eval.require]  # before anything heavy runs
        if not requirements:
            raise UsageError("bisect looks for what broke a gate", hint="--require 'METRIC OP BOUND' says which")
        if since is not None and len(revs or []) > 1:
            raise UsageError(
                "--since begins one line, and there are several REVs", hint="leave out what comes before it"
            )
        from llmos_cli.operations.bisect import bisect as operation
        from llmos_cli.operations.bisect_plan import plan

        act = plan if dry_run else operation
        s.ui.show(act(s.workspace, revs or ["HEAD"], requirements, resolved, since=since, emit=s.ui.emit))
