"""Tell what changed a metric from one checkpoint to another: config, data, code, environment or noise.

llmos why base HEAD --dry-run          what differs, what would be run again to tell the causes apart, and how long that takes
llmos why base HEAD                    by the task's own metric
llmos why v1 v2 --metric accuracy --runs 4
"""

from typing import Annotated

import typer

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def why(
    before: Annotated[str, typer.Argument(metavar="A", help="The checkpoint to explain from.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The checkpoint to explain.")] = "HEAD",
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="The task's own when absent.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test: test when absent, where there is one.")
    ] = None,
    runs: Annotated[int, typer.Option(min=0, help="Run at most this many recipes again, in a scratch workspace.")] = 8,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations import why as operation
        from llmos_cli.operations.attribution.question import WhyOptions

        options = WhyOptions(metric or "", split or "", runs)
        if dry_run:
            s.ui.show(operation.plan(s.workspace, before, after, options, emit=s.ui.emit))
        else:
            s.ui.show(operation.why(s.workspace, before, after, options, ask=s.ui.confirm, emit=s.ui.emit))
