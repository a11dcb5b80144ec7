"""Continue a text with a language model."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from llmos_cli.errors import UsageError
from llmos_cli.session import JsonFlag, QuietFlag, session


def generate(
    rev: Annotated[str, typer.Argument(metavar="[REV]", help="Checkpoint to generate with.")] = "HEAD",
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Text to go on from; standard input when absent.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this probability.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        workspace = s.workspace
        if prompt is None:
            if " " in rev:
                raise UsageError(f"{rev!r} is no checkpoint's name", hint=f"llmos generate -p {shlex.quote(rev)}")
            if sys.stdin.isatty():
                raise UsageError("There is no prompt.", hint='llmos generate -p "The for statement is used to"')
            prompt = sys.stdin.read()

        from llmos_cli.operations.generate import Sampling
        from llmos_cli.operations.generate import generate as operation

        sampling = Sampling(max_tokens, temperature, top_p, seed)
        if json:
            s.ui.show(operation(workspace, rev, prompt, sampling))
            return
        operation(workspace, rev, prompt, sampling, say=s.ui.write)
        s.ui.write("\n")
