"""What an operation may touch. Logs and `pending.json` are files like others: in a workspace that came from somebody else, or that a group shares,
anybody may have written them, and what they say is carried out with the rights of whoever runs llmos next.

    HEAD, refs/KIND/NAME        of branches, tags, stages, names of data, and what remotes were seen to have: an id, or a branch for HEAD
    llmos.yaml, configs/*.yaml  any text: what runs is trusted by its content (`trust.py`)
    .llmos/dropped/ID, lost/ID, signatures/ID.sig, snapshots/ID.json, remotes/NAME.json
    checkpoints/ID, sealed/ID   by the ids that an operation drops, collects, seals or unseals
    refs/runs/RUN               by the run that it commits

And none of it through a folder that is a link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.refs import HEAD, HEADS, ID, MOVED, REMOTES, RUNS, SYMBOLIC

if TYPE_CHECKING:
    from llmos_cli.core.operation import Operation

DOT = ".llmos/"
CONFIGS = "configs"
CHECKPOINTS = "checkpoints"
_WAITING = f"{DOT}sealed/waiting"
_KINDS = (
    "refs",
    "dropped",
    "lost",
    "signatures",
    "remotes",
    "sealed",
    "sealed/waiting",
    "objects",
    "tmp",
    "aside",
)
FOLDERS = (*_KINDS, *(kind.rstrip("/") for kind in (*MOVED, REMOTES, RUNS)))
"""Those of `.llmos` in which files are made, moved and removed by their names."""
_HEX = "[0-9a-f]{64}"
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\0]+"
_REF = rf"(?:{'|'.join((*MOVED, REMOTES))}){_PART}(?:/{_PART})*"
_BRANCH = rf"{SYMBOLIC}{HEADS}{_PART}(?:/{_PART})*"
_FILE = (
    rf"llmos\.yaml|{CONFIGS}/{_PART}\.ya?ml|"
    rf"\.llmos/(?:(?:dropped|lost)/{_HEX}|signatures/{_HEX}\.sig|snapshots/{_HEX}\.json|remotes/{_PART}\.json)"
)
_RUN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""Compiled where they are used: most commands import this and read no operation."""


def may_change(what: str, contents: Iterable[str | None]) -> bool:
    """Whether operations make such changes: of that file, or of that ref from and to such values."""
    if what == HEAD:
        return all(each is None or ID.fullmatch(each) or re.fullmatch(_BRANCH, each) for each in contents)
    if re.fullmatch(_REF, what):
        return all(each is None or ID.fullmatch(each) for each in contents)
    return re.fullmatch(_FILE, what) is not None


def linked(dot: Path) -> str:
    """The first of the folders of `.llmos` that is a link, empty where none is: whoever changed what is behind it would change another's."""
    return next((f"{DOT}{name}" for name in FOLDERS if (dot / name).is_symlink()), "")


def link_before(root: Path, dot: Path, operation: Operation) -> str:
    """The first folder of those in which it changes something that is a link, or lies behind one: what is there is not this workspace's.
    Empty where none is. That `.llmos` is one is the user's own affair."""
    for folder in _folders(operation):
        base, below = (dot, folder.removeprefix(DOT)) if folder.startswith(DOT) else (root, folder)
        if (base / below).resolve() != base.resolve() / below:
            return folder
    return ""


def _folders(operation: Operation) -> Iterable[str]:
    """Relative to the workspace, each once."""
    changed = [
        f"{DOT if change.is_ref else ''}{change.what}".rpartition("/")[0]
        for change in operation.changes
        if change.what != HEAD
    ]
    ids = (*operation.drops, *operation.collects, *operation.seals, *operation.unseals)
    opened = (f"{folder}/{each}" for folder in (CHECKPOINTS, _WAITING) for each in operation.unseals)
    return dict.fromkeys([*filter(None, changed), *([CHECKPOINTS] if ids else ()), *opened])


def may_be_run(run: str) -> bool:
    return not run or re.fullmatch(_RUN, run) is not None


def are_ids(checkpoints: Iterable[str]) -> bool:
    return all(map(ID.fullmatch, checkpoints))
