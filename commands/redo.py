"""Do again what the last undo took back."""

from __future__ import annotations

from llmos_cli.session import DryRunFlag, JsonFlag, QuietFlag, session


def redo(dry_run: DryRunFlag = False, json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet, dry_run=dry_run) as s:
        from llmos_cli.operations.redo import redo as operation

        s.ui.show(operation(s.workspace))
