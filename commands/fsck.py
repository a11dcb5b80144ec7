"""Hash every byte again, follow every ref, and say what is damaged and whom it hurts.

llmos fsck --repair             put back what another checkpoint or a remote still has
llmos fsck --accept-loss REV    give up what nobody has any more, so that all else can be collected, backed up and pushed again;
                                `llmos undo` takes that back, and a copy that turns up later counts again
llmos fsck --accept-loss .llmos/audit.jsonl
                                set a damaged log aside and begin it anew; so with .llmos/operations.jsonl
llmos fsck --accept-loss runs/RUN/config.yaml
                                give up what a run was given and nobody has any more as it was; so with configs/ of a run,
                                and of its events.jsonl what was edited
llmos fsck --remote origin      all that a remote has instead, read and hashed: what was sent well may have decayed there since;
                                with --repair, good copies are sent again of what this workspace still has
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from llmos_cli.errors import Corrupt, UsageError
from llmos_cli.session import JsonFlag, KeyOfSeal, QuietFlag, Session, session

if TYPE_CHECKING:
    from llmos_cli.operations.integrity.result import FsckResult


def fsck(
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Put back what is good in another checkpoint or on a remote, and refs where the log left them; seal anew, with its key, what a remote has in the clear.",
        ),
    ] = False,
    accept_loss: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-loss",
            metavar="REV",
            help="Give up a checkpoint that --repair cannot bring back, its weights, a file of a run, or what was in a damaged log (repeatable).",
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "--remote", metavar="NAME", help="Check what this remote has, every byte of it, not this workspace."
        ),
    ] = None,
    key_file: KeyOfSeal = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    with session(json=json, quiet=quiet, changes=repair or bool(accept_loss)) as s:
        if remote is not None:
            _fsck_remote(s, remote, repair, said={"--accept-loss": accept_loss, "--key-file": key_file})
            return
        from llmos_cli.operations.fsck import fsck as operation

        result = operation(s.workspace, repair=repair, accept_loss=accept_loss or (), key_file=key_file, emit=s.ui.emit)
        s.ui.show(result)
        if result.problems:
            raise Corrupt(result.sentence, hint=_way_on(result) if repair or accept_loss else _REPAIR)


def _fsck_remote(s: Session, remote: str, repair: bool, *, said: Mapping[str, object]) -> None:
    from llmos_cli.operations.fsck_remote import fsck_remote as operation

    for flag in (flag for flag, value in said.items() if value):
        raise UsageError(f"{flag} is of this workspace, and --remote checks what {remote} has", hint=_ALONE[flag])
    result = operation(s.workspace, remote, repair=repair, emit=s.ui.emit)
    s.ui.show(result)
    if result.problems:
        raise Corrupt(result.sentence, hint=_NOWHERE if repair else _SEND.format(remote=remote))


_SEND = "`llmos fsck --remote {remote} --repair` sends again what this workspace has good copies of"
_NOWHERE = (
    "the same command in another workspace that has this remote sends what that one has good copies of; what nobody has any more "
    "is lost there: a new remote takes all that is whole here"
)
_ALONE = {
    "--accept-loss": "give up here what is lost here, without --remote; the next `llmos push` tells the remote",
    "--key-file": "the key of an encrypted remote is where `llmos remote add` was told; what is sealed is hashed as it is encrypted",
}
_REPAIR = "`llmos fsck --repair` puts refs back and looks for good copies in other checkpoints and on remotes"


def _way_on(result: FsckResult) -> str:
    """Where repairing did what it could."""
    from llmos_cli.core.view import short
    from llmos_cli.operations.integrity.sealed import way_back

    problems = result.problems
    logs = {each.where for each in problems if each.where in (_OPERATIONS, _AUDIT)}
    # A move that does not follow the one before it shows at its ref, with the checkpoint that it went to.
    torn = {_OPERATIONS for each in problems if each.where.startswith(("refs/", "HEAD")) and each.checkpoint}
    ways = [f"`llmos fsck --accept-loss {log}` begins the damaged log anew" for log in sorted(logs | torn)]
    if file := next((each.where for each in problems if each.run), ""):
        ways.append(f"`llmos fsck --accept-loss {file}` sets aside what is damaged of a run")
    if result.clear:
        checkpoint, remote = next(iter(result.clear.items()))
        ways.append(f"{remote} has {short(checkpoint)} in the clear: {way_back(checkpoint)}")
    if result.lost:
        ways.append(f"`llmos fsck --accept-loss {result.lost_called}` gives up a checkpoint that nobody has any more")
    return "; ".join(ways) or "what is left is yours to move or to take away; `llmos op log` has what llmos did"


_OPERATIONS, _AUDIT = ".llmos/operations.jsonl", ".llmos/audit.jsonl"
