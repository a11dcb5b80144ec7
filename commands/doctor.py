"""Look at this machine: arithmetic, memory, disk, extras."""

from __future__ import annotations

from pathlib import Path

from llmos_cli.session import JsonFlag, QuietFlag, session


def doctor(json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.doctor import doctor as operation

        s.ui.show(operation(Path.cwd(), emit=s.ui.emit))
