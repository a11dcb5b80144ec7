"""Set weights to zero or cut whole units out, let the rest make up for it, and prove the result."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import (
    ConfigFiles,
    DryRunFlag,
    HealFlag,
    JsonFlag,
    KeepBranchFlag,
    MaxDropFlag,
    MaxKlFlag,
    QuietFlag,
    ResumedRun,
    ResumeFlag,
    Sets,
    Unsets,
    goes_on_as_begun,
    session,
)


def prune(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="Checkpoint to prune.")] = "HEAD",
    method: Annotated[str | None, typer.Option(help="How weights are chosen.")] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Share of weights to set to zero; of a structured method, share of the parameters to cut."),
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="unstructured, or n:m such as 2:4.")] = None,
    heal: HealFlag = None,
    max_kl: MaxKlFlag = None,
    max_drop: MaxDropFlag = None,
    resume: ResumeFlag = False,
    run: ResumedRun = None,
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
        if resume or run:
            goes_on_as_begun(rev, config, sets, unsets, dry_run, method, heal, max_kl, max_drop, sparsity, pattern)
            from llmos_cli.operations.prune import resume as operation_resume

            s.ui.show(operation_resume(s.workspace, run, emit=s.ui.emit))
            return
        given = {"method": method, "sparsity": sparsity, "pattern": pattern, "heal": heal}
        flags = {f"prune.{key}": value for key, value in (given | {"max_kl": max_kl, "max_drop": max_drop}).items()}
        resolved = s.resolve("prune", files=config, sets=sets, unsets=unsets, flags=flags)
        from llmos_cli.operations import prune as operation

        if dry_run:
            s.ui.show(operation.plan(s.workspace, rev, resolved))
        else:
            s.ui.show(operation.prune(s.workspace, rev, resolved, emit=s.ui.emit))
