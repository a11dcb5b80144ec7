"""Show where the workspace stands: HEAD, its numbers, what runs, which configs changed."""

from __future__ import annotations

from llmos_cli.session import JsonFlag, QuietFlag, session


def status(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.status import status as operation

        s.ui.show(operation(s.workspace))
