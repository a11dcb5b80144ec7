"""Show what each checkpoint takes on disk: its own bytes, and those it shares with others."""

from __future__ import annotations

from llmos_cli.session import JsonFlag, QuietFlag, session


def du(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.du import du as operation

        s.ui.show(operation(s.workspace))
