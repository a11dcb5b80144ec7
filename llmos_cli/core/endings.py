"""How a run ends: its `ended` event says how many bytes of events came before it, and has the hash of those and of itself.

    {"event": "ended", ..., "bytes": N, "sha256": HEX}      of the first N bytes of the file and of this line up to `, "sha256"`

What a resumed run writes after an end has an end of its own. What is written after the last one (a worker that outlives its run) and
runs of before there was a hash have none, and are as good. It finds what was edited, not who takes the trouble to hash it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from llmos_cli.errors import UNREADABLE

EDITED = "was edited: it is not what the run had written when it ended"
_HASH = b', "sha256": "'
_BYTES = b', "bytes": '
_ENDED = b'{"event": "ended"'
_EVIDENCE = ("metric", "proven")
_KNOWN = {"event", "at", "status", "exit_code", "message"}
"""Keys of an end without a hash."""


def closed(line: str, before: bytes) -> str:
    """The line of an end, with the hash of all that is `before` it."""
    said = line.rstrip("\n")[:-1].encode() + _BYTES + str(len(before)).encode()
    return f'{said.decode()}, "sha256": "{hashlib.sha256(before + said).hexdigest()}"}}\n'


def altered(text: bytes) -> list[int]:
    """Numbers of the lines that are ends of other events than these."""
    return list(_altered(text)) if b'"ended"' in text or _HASH in text else []


def ends(text: bytes) -> int:
    """How often it says that the run ended, wherever that was edited."""
    return sum(line[-79:-66] == _HASH or line.startswith(_ENDED) for line in text.split(b"\n"))


def not_json(text: bytes) -> list[int]:
    """Numbers of the whole lines that make no sense: one that a crash cut short at the end is no damage."""
    return [number for number, line in enumerate(text.split(b"\n")[:-1], 1) if _parsed(line) is None]


def closed_again(text: bytes) -> bytes:
    """What can be read of a file that was edited, with ends that have the hash of that; what was measured is proven no more, and goes."""
    told = b""
    for line in text.split(b"\n")[:-1]:
        event = _parsed(line)
        if event is not None and event.get("event") == "ended":
            end = json.dumps({key: value for key, value in event.items() if key not in ("bytes", "sha256")}) + "\n"
            told += closed(end, told).encode()
        elif event is not None and event.get("event") not in _EVIDENCE:
            told += line + b"\n"
    return told


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        return event if isinstance(event, dict) else None
    except UNREADABLE:
        return None


def _altered(text: bytes) -> Iterator[int]:
    for number, line in enumerate(text.split(b"\n"), 1):
        if line[-79:-66] == _HASH:
            said = line[:-79]
            count = said.rpartition(_BYTES)[2]
            before = text[: int(count)] if count.isdigit() else b""
            if hashlib.sha256(before + said).hexdigest().encode() != line[-66:-2]:
                yield number
        elif line.startswith(_ENDED) and not _is_old(line):
            yield number


def _is_old(line: bytes) -> bool:
    """Or half of one, that a crash left."""
    try:
        return set(json.loads(line)) <= _KNOWN
    except UNREADABLE:
        return True
