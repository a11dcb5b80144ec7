"""Train a model from scratch, go on with a checkpoint, or resume what was interrupted."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import ConfigFiles, DryRunFlag, JsonFlag, KeepBranchFlag, QuietFlag, Sets, Unsets, session


def train(
    rev: Annotated[
        str | None, typer.Argument(metavar="[REV]", help="Checkpoint to start from; from scratch when absent.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with this branch's last interrupted run; -s train.X changes how it is optimised."
        ),
    ] = False,
    run: Annotated[str | None, typer.Option(metavar="ID", help="With --resume: this run instead.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Make each -c FILE a run of its own, this many at a time.")
    ] = None,
    keep_branch: KeepBranchFlag = False,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        s.workspace.keep_branch = keep_branch
        if dry_run and (resume or run or jobs):
            raise UsageError(
                "--dry-run plans one new run",
                hint="leave --resume, --run and --jobs out; a run's own config is in runs/",
            )
        if resume or run:
            if rev or config or jobs:
                raise UsageError(
                    "--resume goes on with a run as it was begun",
                    hint="leave REV, -c and --jobs out (-s train.learning_rate and its like may change), or start a new run",
                )
            from llmos_cli.operations.train import resume as operation

            s.ui.show(operation(s.workspace, run, sets=sets or (), unsets=unsets or (), emit=s.ui.emit))
        elif jobs:
            from llmos_cli.operations.training.several import several

            s.ui.show(several(s.workspace, rev, config or [], sets or [], unsets or [], jobs=jobs, emit=s.ui.emit))
        elif dry_run:
            resolved = s.resolve("train", files=config, sets=sets, unsets=unsets)
            from llmos_cli.operations.training.plan import plan

            s.ui.show(plan(s.workspace, rev, resolved, emit=s.ui.emit))
        else:
            resolved = s.resolve("train", files=config, sets=sets, unsets=unsets)
            # Only now: a mistake in the config is told before torch is imported.
            from llmos_cli.operations.train import train as operation_train

            s.ui.show(operation_train(s.workspace, rev, resolved, emit=s.ui.emit))
