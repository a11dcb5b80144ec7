"""What an operation may touch. Logs and `pending.json` are files like others: in a workspace that came from somebody else, or that a group shares,
anybody may have written them, and what they say is carried out with the rights of whoever runs llmos next.

    HEAD, refs/KIND/NAME        of branches, tags, stages, names of data, and what remotes were seen to have: an id, or a branch for HEAD
    llmos.yaml, configs/*.yaml  any text: what runs is trusted by its content (`trust.py`); not through a folder that is a link to elsewhere
    .llmos/dropped/ID, lost/ID, signatures/ID.sig, snapshots/ID.json, remotes/NAME.json
    checkpoints/ID, sealed/ID   by the ids that an operation drops, collects, seals or unseals
    refs/runs/RUN               by the run that it commits
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from llmos_cli.core.refs import HEAD, HEADS, ID, MOVED, REMOTES, SYMBOLIC

CONFIGS = "configs"
_HEX = "[0-9a-f]{64}"
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\0]+"
_REF = re.compile(rf"(?:{'|'.join(map(re.escape, (*MOVED, REMOTES)))}){_PART}(?:/{_PART})*")
_BRANCH = re.compile(rf"{re.escape(SYMBOLIC + HEADS)}{_PART}(?:/{_PART})*")
_FILE = re.compile(
    rf"llmos\.yaml|{CONFIGS}/{_PART}\.ya?ml|"
    rf"\.llmos/(?:(?:dropped|lost)/{_HEX}|signatures/{_HEX}\.sig|snapshots/{_HEX}\.json|remotes/{_PART}\.json)"
)
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def may_change(what: str, contents: Iterable[str | None]) -> bool:
    """Whether operations make such changes: of that file, or of that ref from and to such values."""
    if what == HEAD:
        return all(each is None or ID.fullmatch(each) or _BRANCH.fullmatch(each) for each in contents)
    if _REF.fullmatch(what):
        return all(each is None or ID.fullmatch(each) for each in contents)
    return _FILE.fullmatch(what) is not None


def leads_out(root: Path, what: str) -> bool:
    """Whether a change of that file would be one of another folder's, which the workspace only links to."""
    return what.startswith(f"{CONFIGS}/") and not (root / CONFIGS).resolve().is_relative_to(root.resolve())


def may_be_run(run: str) -> bool:
    return not run or _RUN.fullmatch(run) is not None


def are_ids(checkpoints: Iterable[str]) -> bool:
    return all(map(ID.fullmatch, checkpoints))
