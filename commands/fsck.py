"""Hash every byte again, follow every ref, and say what is damaged and whom it hurts.

llmos fsck --repair             put back what another checkpoint or a remote still has
llmos fsck --accept-loss REV    give up what nobody has any more, so that all else can be collected, backed up and pushed again;
                                `llmos undo` takes that back, and a copy that turns up later counts again
llmos fsck --accept-loss .llmos/audit.jsonl
                                set a damaged log aside and begin it anew; so with .llmos/operations.jsonl
"""

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
    accept_loss: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-loss",
            metavar="REV",
            help="Give up a checkpoint that --repair cannot bring back, its weights, or what was in a damaged log (repeatable).",
        ),
    ] = None,
    key_file: KeyOfSeal = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, changes=repair or bool(accept_loss)) as s:
        from llmos_cli.operations.fsck import fsck as operation

        result = operation(s.workspace, repair=repair, accept_loss=accept_loss or (), key_file=key_file, emit=s.ui.emit)
        s.ui.show(result)
        if result.problems:
            raise Corrupt(result.sentence, hint=_LOST if repair or accept_loss else _REPAIR)


_REPAIR = "`llmos fsck --repair` puts refs back and looks for good copies in other checkpoints and on remotes"
_LOST = (
    "`llmos fsck --accept-loss REV` gives up a checkpoint that nobody has any more, and with .llmos/operations.jsonl or .llmos/audit.jsonl a "
    "damaged log; `llmos log --all` shows the others"
)
