"""Do again what the last undo took back."""

from __future__ import annotations

from llmos_cli.session import JsonFlag, QuietFlag, session


def redo(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.redo import redo as operation

        s.ui.show(operation(s.workspace))
