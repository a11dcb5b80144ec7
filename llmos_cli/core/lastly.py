"""Whether a ref is where the log of operations left it, at a glance: `status` and whatever takes a revision ask, and have no time to read
the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import lines
from llmos_cli.core.refs import FIRST, HEAD
from llmos_cli.errors import UNREADABLE

if TYPE_CHECKING:
    from llmos_cli.core.refs import Refs


def moved_by_hand(dot: Path, refs: Refs, ref: str) -> bool:
    """Whether it stands elsewhere, though no command is moving it. The next command that does makes an operation of it first.

    A command writes `pending.json`, the ref, its line in the log, and takes the first away: so where nothing was pending after the ref was
    read, and it says the same afterwards, the line is there."""
    now = refs.read(ref)
    if _left(dot, ref, now) or (dot / "pending.json").exists():
        return False
    return not _left(dot, ref, now) and refs.read(ref) == now


def _left(dot: Path, ref: str, value: str | None) -> bool:
    """Whether the last line that speaks of it says so; of a ref that none speaks of, whether it is as a new workspace has it."""
    line = next(lines.holding(dot / "operations.jsonl", f'"what": {json.dumps(ref)}'.encode()), None)
    if line is None:
        return value == (FIRST if ref == HEAD else None)
    try:
        return any(each["what"] == ref and each["after"] == value for each in json.loads(line)["changes"])
    except UNREADABLE:
        return True  # `fsck` tells of such a line
