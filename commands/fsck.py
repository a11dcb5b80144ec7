"""Hash every byte again, follow every ref, and say what is damaged and whom it hurts."""

from __future__ import annotations

from typing import Annotated

import typer

from llmos_cli.errors import Corrupt
from llmos_cli.session import JsonFlag, KeyOfSeal, QuietFlag, session


def fsck(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Put back what is good in another checkpoint or on a remote, and refs where the log left them.",
        ),
    ] = False,
    key_file: KeyOfSeal = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, changes=repair) as s:
        from llmos_cli.operations.fsck import fsck as operation

        result = operation(s.workspace, repair=repair, key_file=key_file, emit=s.ui.emit)
        s.ui.show(result)
        if result.problems:
            raise Corrupt(
                result.sentence,
                hint="`llmos log --all` shows what else there is to go back to"
                if repair
                else "`llmos fsck --repair` puts refs back and looks for good copies in other checkpoints and on remotes",
            )
