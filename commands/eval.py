"""Measure revisions side by side on held-out data, and gate the last one."""

from pathlib import Path
from typing import Annotated

import typer

from llmos_cli.errors import GateFailed, UsageError
from llmos_cli.session import ConfigFiles, JsonFlag, QuietFlag, Sets, Unsets, session

Revs = Annotated[
    list[str] | None, typer.Argument(metavar="[REV]...", help="Checkpoints to evaluate; HEAD when absent.")
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="'METRIC OP BOUND'", help="What the last REV must satisfy, such as 'loss <= 1.05 * base'; repeatable."
    ),
]


def eval(
    revs: Revs = None,
    require: Require = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
    folds: Annotated[int | None, typer.Option(metavar="K", help="Cross-validate: train and evaluate K times.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is on record.")] = False,
    fetched: Annotated[
        bool, typer.Option("--fetched", help="Take what was measured elsewhere and fetched, too.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the result as Markdown.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the gates as JUnit XML.")] = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        if json and markdown:
            raise UsageError(
                "--json and --markdown are two forms of one answer",
                hint="ask twice: the second time is from the record",
            )
        s.will_write(junit)
        from llmos_cli.operations import gate

        flags = {"eval.require": require, "eval.split": split, "eval.folds": folds}
        resolved = s.resolve("eval", files=config, sets=sets, unsets=unsets, flags=flags)
        requirements = [gate.parse(text) for text in resolved.config.eval.require]  # before anything heavy runs

        from llmos_cli.operations import reports
        from llmos_cli.operations.eval import evaluate

        result = evaluate(
            s.workspace, revs or ["HEAD"], requirements, resolved, fresh=fresh, fetched=fetched, emit=s.ui.emit
        )
        if junit:
            reports.write_junit(result, junit)
        if markdown:
            s.ui.write(reports.markdown(result))
        else:
            s.ui.show(result)
        if json and not result.passed:
            raise typer.Exit(GateFailed.exit_code)  # the verdicts are in the JSON: one document, not two
        result.enforce()
