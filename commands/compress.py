"""Choose methods, widths and bits that reach a target, build the best of them, and prove it."""

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

LATENCY = "One answer's time as a share of the parent's."


def compress(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="Checkpoint to compress.")] = "HEAD",
    target_size: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes of all weights, such as 40MB.")] = None,
    target_ratio: Annotated[float | None, typer.Option(help="The same as a share of the parent's.")] = None,
    target_latency: Annotated[float | None, typer.Option(help=LATENCY)] = None,
    target_kl: Annotated[float | None, typer.Option(help="The smallest result with at most this KL.")] = None,
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
            goes_on_as_begun(
                rev,
                config,
                sets,
                unsets,
                dry_run,
                heal,
                max_kl,
                max_drop,
                target_size,
                target_ratio,
                target_latency,
                target_kl,
            )
            from llmos_cli.operations.compress import resume as operation_resume

            s.ui.show(operation_resume(s.workspace, run, emit=s.ui.emit))
            return
        targets = {"size": target_size, "ratio": target_ratio, "latency": target_latency, "kl": target_kl}
        flags = {f"compress.target_{key}": value for key, value in targets.items()}
        flags |= {
            f"compress.{key}": value for key, value in {"heal": heal, "max_kl": max_kl, "max_drop": max_drop}.items()
        }
        resolved = s.resolve("compress", files=config, sets=sets, unsets=unsets, flags=flags)
        from llmos_cli.operations import compress as operation

        if dry_run:
            s.ui.show(operation.plan(s.workspace, rev, resolved))
        else:
            s.ui.show(operation.compress(s.workspace, rev, resolved, emit=s.ui.emit))
