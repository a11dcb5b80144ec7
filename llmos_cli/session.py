"""What a command is handed: the workspace around the current folder, and the ui.

def tag(name: Annotated[str, typer.Argument(help="...")], json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    with session(json=json, quiet=quiet) as s:
        from llmos_cli.operations.tag import tag as operation
        s.ui.show(operation(s.workspace, name))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos_cli.core import access, outfile
from llmos_cli.errors import UsageError
from llmos_cli.ui import Ui

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress, only results, warnings and errors.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ConfigFiles = Annotated[
    list[Path] | None, typer.Option("-c", "--config", help="A config file, over configs/; repeatable.")
]
Sets = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Set a config key; repeatable.")
]
Unsets = Annotated[list[str] | None, typer.Option("--unset", metavar="KEY", help="Forget a config key; repeatable.")]
KeyOfRemote = Annotated[
    Path | None, typer.Option("--key-file", metavar="FILE", help="Of an encrypted remote: the key is in FILE.")
]
EncryptedRemote = Annotated[bool, typer.Option("--encrypted", help="Of an encrypted remote: the key is in LLMOS_KEY.")]
KeyOfSeal = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="Of what is sealed: the key is in FILE, not in LLMOS_KEY."),
]
KeepBranchFlag = Annotated[bool, typer.Option("--keep-branch", help="Leave the branch where it is.")]
HealFlag = Annotated[int | None, typer.Option(metavar="N", help="Then learn from the parent for N steps.")]
MaxKlFlag = Annotated[float | None, typer.Option(help="Commit nothing above this KL to the parent (exit 3).")]
MaxDropFlag = Annotated[
    float | None, typer.Option(help="Commit nothing if the task's metric gets worse by more than this (exit 3).")
]
"""What every compression takes."""
ResumeFlag = Annotated[
    bool, typer.Option("--resume", help="Go on with this branch's last interrupted run, at the block where it stopped.")
]
ResumedRun = Annotated[str | None, typer.Option("--run", metavar="ID", help="With --resume: this run instead.")]


def goes_on_as_begun(rev: str, *others: Any) -> None:
    """UsageError where something beside `--resume` says what to compress or how."""
    if rev != "HEAD" or any(others):
        raise UsageError(
            "--resume goes on with a run as it was begun", hint="leave everything but --run out, or begin a new run"
        )


class Session:
    """`changes`: the command is about to change the workspace."""

    def __init__(self, ui: Ui, *, changes: bool) -> None:
        self.ui = ui
        self._changes = changes

    @cached_property
    def workspace(self) -> Workspace:
        """Found from the current folder upwards; NotFound (exit 4) where there is none."""
        from llmos_cli.core.workspace import Workspace

        workspace = Workspace.find(emit=self.ui.emit)
        access.work_as_group(workspace.dot)
        if self._changes:
            access.require_writable(workspace.dot)
        if self.ui.dry_run:
            workspace.oplog.rehearsing = True
        return workspace

    def will_write(self, *files: Path | None) -> None:
        """What the user wants written, where it can be; in read-only mode anywhere but in the workspace."""
        for file in filter(None, files):
            access.require_outside(self.workspace.root, file)
            outfile.require(file)

    def resolve(
        self,
        verb: str,
        *,
        files: Sequence[Path] | None = None,
        sets: Sequence[str] | None = None,
        unsets: Sequence[str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """The config of `verb`, everything the command line said included; `flags` that are None were not given.

        Code that it names is asked about now, on a terminal, rather than in the middle of the work.
        """
        from llmos_cli.core.trust import require
        from llmos_cli.operations.config import resolve

        ws = self.workspace
        resolved = resolve(ws, verb, files=files or (), sets=sets or (), unsets=unsets or (), flags=flags or {})
        if module := resolved.mapping.get("model", {}).get("module"):
            require(ws, ws.root / module.partition(":")[0], ask=self.ui.confirm)
        return resolved


@contextmanager
def session(
    *, json: bool = False, quiet: bool = False, dry_run: bool | None = None, changes: bool | None = None
) -> Iterator[Session]:
    """With `dry_run` no ref and no config of the workspace moves, and the result says so; see `core/oplog.py`. What
    changes something is refused here in read-only mode: a command that has `--dry-run`, unless that was said, or as `changes` says."""
    changes = dry_run is False if changes is None else changes and not dry_run
    if changes:
        access.require_change()
    ui = Ui(json=json, quiet=quiet, dry_run=bool(dry_run))
    try:
        yield Session(ui, changes=changes)
    finally:
        ui.close()
