"""Print the shell's completion script: commands, options, revisions and methods.

llmos completion bash >> ~/.bashrc
llmos completion zsh >> ~/.zshrc
llmos completion fish > ~/.config/fish/completions/llmos.fish
"""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.session import JsonFlag, QuietFlag, session


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")] = "bash",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.completion import completion as operation

        s.ui.show(operation(shell))
