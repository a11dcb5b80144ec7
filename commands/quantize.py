"""Store weights in fewer bits, in a format that others read, and prove the result."""

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


def quantize(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="Checkpoint to quantize.")] = "HEAD",
    method: Annotated[str | None, typer.Option(help="How codes are chosen.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits of a weight.")] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Inputs that share a scale, or as many fewer as divide a layer's; -1: all of them."),
    ] = None,
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
            goes_on_as_begun(rev, config, sets, unsets, dry_run, method, heal, max_kl, max_drop, bits, group_size)
            from llmos_cli.operations.quantize import resume as operation_resume

            s.ui.show(operation_resume(s.workspace, run, emit=s.ui.emit))
            return
        given = {"method": method, "bits": bits, "group_size": group_size, "heal": heal}
        flags = {f"quantize.{key}": value for key, value in (given | {"max_kl": max_kl, "max_drop": max_drop}).items()}
        resolved = s.resolve("quantize", files=config, sets=sets, unsets=unsets, flags=flags)
        from llmos_cli.operations import quantize as operation

        if dry_run:
            s.ui.show(operation.plan(s.workspace, rev, resolved))
        else:
            s.ui.show(operation.quantize(s.workspace, rev, resolved, emit=s.ui.emit))
