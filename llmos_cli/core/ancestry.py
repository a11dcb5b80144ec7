"""Lines of ancestors, walked in one place, which knows where one breaks off: at a checkpoint that is missing, or whose manifest
cannot be read. What such a one was made from nobody knows, so whoever is about to remove or to send lines asks here first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from llmos_cli.core.listing import folders
from llmos_cli.core.view import apart
from llmos_cli.errors import Corrupt

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

_SHOWN = 3


class Walked(NamedTuple):
    """`line`: the checkpoints that were asked for and all their ancestors; `rest`: all others; `ends`: those of the line that are
    missing or cannot be read."""

    line: set[str]
    rest: set[str]
    ends: set[str]


def walk(ws: Workspace, checkpoints: Iterable[str]) -> Walked:
    """Through all of a workspace: it reads the index alone, and once. For a short line `protection.with_ancestors` asks less."""
    parents = ws.index.parents()
    waiting, line, ends = list(checkpoints), set[str](), set[str]()
    while waiting:
        if (each := waiting.pop()) not in line:
            line.add(each)
            if (known := parents.get(each)) is None:
                ends.add(each)
            else:
                waiting += known.split('"')[1::2]  # of `["id", "id"]`: to parse it takes five times as long
    return Walked(line, parents.keys() - line, ends)


def broken(ws: Workspace, checkpoints: Iterable[str], *, undone: str) -> Corrupt:
    """What is said of such ends; `undone`: what was therefore not done."""
    found = sorted(checkpoints)
    names = {each: apart(each, chain(folders(ws.checkpoints), found)) for each in found}
    shown = [f"checkpoint {names[each]} {_what(ws, each)}" for each in found[:_SHOWN]]
    more = [f"{len(found) - _SHOWN} more are as bad"] if len(found) > _SHOWN else []
    it = "it" if len(found) == 1 else "them"
    return Corrupt(
        f"{' and '.join([*shown, *more])}: nobody knows what {it} came from, and {undone}",
        hint=f"`llmos fsck --repair` brings {it} back where a remote has {it}; where none has, "
        f"`llmos fsck --accept-loss {' '.join(names.values())}` gives {it} up and keeps all else",
    )


def _what(ws: Workspace, checkpoint: str) -> str:
    present = (ws.checkpoints / checkpoint).is_dir()
    return "has a manifest that cannot be read" if present else "is missing"
