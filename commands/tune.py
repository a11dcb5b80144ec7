"""Search config keys for the values that train best; each trial is a run."""

from typing import Annotated

import typer

from llmos_cli.session import ConfigFiles, DryRunFlag, JsonFlag, QuietFlag, Sets, Unsets, session


def tune(
    trials: Annotated[int | None, typer.Option(metavar="N", help="Trials the study is to have.")] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", help="Trials at once, each in a process of its own.")] = None,
    sampler: Annotated[str | None, typer.Option(metavar="NAME", help="tpe, random, grid, nsga2 or cmaes.")] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with the study of this name, or make it.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna storage; the workspace's own when absent.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best values into configs/train.yaml.")] = False,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        flags = {"trials": trials, "jobs": jobs, "sampler": sampler, "study": study, "storage": storage}
        resolved = s.resolve(
            "tune", files=config, sets=sets, unsets=unsets, flags={f"tune.{key}": flags[key] for key in flags}
        )
        from llmos_cli.data.extras import require

        require("optuna", "tune", "searches")

        from llmos_cli.operations import tune as operations

        if dry_run:
            s.ui.show(operations.rehearse(s.workspace, resolved, apply=apply))
        else:
            s.ui.show(operations.tune(s.workspace, resolved, apply=apply, emit=s.ui.emit))
