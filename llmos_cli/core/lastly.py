"""Whether refs are where the log of operations left them, at a glance: `status`, whatever takes a revision and whatever lists them ask, and
have no time to parse the log."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import lines
from llmos_cli.core.listing import read_bytes
from llmos_cli.core.refs import FIRST, HEAD
from llmos_cli.errors import UNREADABLE

if TYPE_CHECKING:
    from llmos_cli.core.refs import Refs


_MOVE = rb'"what": ("refs/[^"]*"), "before": (?:null|"[^"]*"), "after": (?:null|"([^"]*)")'
"""Of an operation alone: within a text that it holds, each quote has a backslash before it. Nothing more exact comes first, so that it is found
ten times as fast; compiled where it is used."""


def astray(dot: Path, refs: Refs, prefixes: Sequence[str]) -> list[str]:
    """Refs of these kinds that stand elsewhere, or are gone; `moved_by_hand` says whether no command is moving one."""
    left = _all_left(dot)
    there = {prefix + name: value for prefix in prefixes for name, value in refs.under(prefix).items()}
    known = {ref for ref in left if ref.startswith(tuple(prefixes))}
    return [ref for ref in sorted(known | there.keys()) if left.get(ref) != there.get(ref)]


def _all_left(dot: Path) -> dict[str, str | None]:
    """Where the last line that speaks of a ref says that it went, of all refs but those with a quote in their names."""
    try:
        text = read_bytes(dot / "operations.jsonl")
    except FileNotFoundError:
        return {}
    found = {}
    for ref, value in dict(re.findall(_MOVE, text)).items():
        with contextlib.suppress(*UNREADABLE):  # `fsck` tells of such a line
            found[json.loads(ref)] = value.decode() or None
    return found


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
