"""Serve a checkpoint over HTTP, as OpenAI's API does; classifiers answer predictions.

llmos deploy                          HEAD at http://127.0.0.1:8080, until Ctrl-C
llmos deploy base --name chat -d      the checkpoint `base`, in the background
llmos ps; llmos logs chat; llmos stop chat
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llmos_cli.session import ConfigFiles, DryRunFlag, JsonFlag, QuietFlag, Sets, Unsets, session


def deploy(
    rev: Annotated[str, typer.Argument(help="The checkpoint to serve.")] = "HEAD",
    name: Annotated[str | None, typer.Option(help="What to call it; the workspace's name when absent.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback a key is required.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    warm: Annotated[
        str | None, typer.Option(help="Compile the decoder: off, background (while serving) or full (first).")
    ] = None,
    require_signature: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Serve what this public key or certificate vouches for, or nothing."),
    ] = None,
    api_key_file: Annotated[str | None, typer.Option(metavar="FILE", help="Keys to accept, one a line.")] = None,
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Return once it answers, and leave it running.")
    ] = False,
    ready_timeout: Annotated[float, typer.Option(help="Seconds that --detach waits for it.")] = 300.0,
    config: ConfigFiles = None,
    sets: Sets = None,
    unsets: Unsets = None,
    dry_run: DryRunFlag = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations import deploy as operations

        flags = {"name": name, "host": host, "port": port, "warm": warm, "api_key_file": api_key_file}
        flags["require_signature"] = require_signature
        resolved = s.resolve(
            "deploy", files=config, sets=sets, unsets=unsets, flags={f"deploy.{key}": flags[key] for key in flags}
        )
        if dry_run:
            s.ui.show(operations.rehearse(s.workspace, rev, resolved))
            return
        if detach and operations.DETACHED not in os.environ:
            s.ui.show(operations.detach(s.workspace, rev, resolved, sys.argv[1:], timeout=ready_timeout))
            return

        def announce(result: operations.DeployResult) -> None:
            s.ui.show(result)
            s.ui.close()  # flushed now: whoever reads the URL from a pipe is waiting for it

        operations.deploy(s.workspace, rev, resolved, emit=s.ui.emit, announce=announce)
