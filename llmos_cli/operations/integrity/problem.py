"""What `fsck` finds, and what was put right: each a line of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt


@dataclass(frozen=True)
class Problem:
    """`where`: a path in the workspace or a ref; `file`: of the checkpoint; `hurts`: branches and tags whose line has the
    damaged checkpoint; `lacks`: the id of a checkpoint that is named and missing; `snapshot`: that of one that is damaged or missing;
    `run`: whose file it is."""

    where: str
    what: str
    checkpoint: str = ""
    file: str = ""
    hurts: tuple[str, ...] = ()
    lacks: str = ""
    snapshot: str = ""
    run: str = ""


@dataclass(frozen=True)
class GivenUpFile:
    """A file of a run that somebody gave up, and that is no damage since."""

    where: str

    @property
    def told(self) -> str:
        return f"{self.where} was given up: it is not what was there once"


@dataclass(frozen=True)
class Repaired:
    """`source`: a checkpoint, the object store or a remote; or `moved`: to where a file went that was in the way."""

    where: str
    source: str = ""
    moved: str = ""

    @property
    def told(self) -> str:
        return f"moved {self.where} to {self.moved}" if self.moved else f"repaired {self.where} from {self.source}"


def readable(ws: Workspace, ref: str) -> tuple[str | None, bool]:
    """What it says, and whether that makes no sense (which is told elsewhere)."""
    try:
        return ws.refs.read(ref), False
    except Corrupt:
        return None, True


def more(lines: Sequence[int]) -> str:
    return f" ({len(lines)} such)" if len(lines) > 1 else ""
