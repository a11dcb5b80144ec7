"""What runs had written when they ended, outside of their folders: so events that were cut off or forged are found out, and a run that
came from elsewhere does not pass for one of this workspace, whatever its own files say.

    .llmos/ledger.jsonl   {"hash": HEX, "own": BOOL, "run": RUN, "sha256": HEX, "size": BYTES}     of the first bytes of its events

A line is added where a run ends here (`own`), or arrives from a remote; the last one of a run counts. `hash` is that of the same line with
`hash` the empty text. A run without a line is of before, or did not live to its end: it is as good, but nobody vouches for what it measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llmos_cli.core import aside, atomic, lines, own_hash
from llmos_cli.core.records import EVENTS
from llmos_cli.errors import UNREADABLE

FILE = "ledger.jsonl"
_BEGINNING = b'{"hash": "'


@dataclass(frozen=True)
class Entry:
    """Of `run`: its first `size` bytes of events have that SHA-256; `own`: they were written by this workspace."""

    run: str
    size: int
    sha256: str
    own: bool

    def fits(self, events: bytes) -> bool:
        """What came after its end (a worker that outlived it, a file that was given up) is not covered."""
        return len(events) >= self.size and hashlib.sha256(events[: self.size]).hexdigest() == self.sha256

    def line(self) -> bytes:
        return own_hash.line(asdict(self)).encode()


def of(run: Path, *, own: bool) -> Entry:
    """As its events are now."""
    from llmos_cli.core.objects import hash_file  # here: what only asks hashes no file

    there = hash_file(run / EVENTS)
    return Entry(run.name, there.size, there.sha256, own)


class Ledger:
    def __init__(self, dot: Path) -> None:
        self.path = dot / FILE
        self._dot = dot

    def find(self, run: str) -> Entry | None:
        found = (_parsed(line) for line in lines.holding(self.path, f'"run": {json.dumps(run)}'.encode()))
        return next((each for each in found if each is not None and each.run == run), None)

    def all(self) -> dict[str, Entry]:
        return {each.run: each for line in lines.read(self.path) if (each := _parsed(line)) is not None}

    def add(self, entries: Sequence[Entry]) -> None:
        """In one write. What came back from elsewhere as it was written here stays this workspace's own."""
        known = self.all() if len(entries) > 1 else {each.run: self.find(each.run) for each in entries}
        new = [each for each in entries if known.get(each.run) not in (each, replace(each, own=True))]
        if text := b"".join(each.line() + b"\n" for each in new):
            lines.append(self.path, text)

    def damaged(self) -> list[int]:
        """Numbers of the lines that were edited. Half of one, which a crash cut short, is no damage."""
        return [
            number
            for number, line in enumerate(lines.read(self.path), 1)
            if line and _parsed(line) is None and not _is_half(line)
        ]

    def repair(self) -> None:
        """Without what makes no sense, which is set aside: nothing is known then of the runs that it was of."""
        aside.keep(self._dot, self.path)
        sound = [line + b"\n" for line in lines.read(self.path) if _parsed(line) is not None]
        atomic.write_bytes(self.path, b"".join(sound), scratch=self._dot / "tmp")

    def forget(self, runs: Collection[str]) -> None:
        """Without the lines of these runs, which are nowhere any more; what makes no sense stays."""
        if not runs:
            return
        said = [(line, _parsed(line)) for line in lines.read(self.path)]
        rest = [line for line, entry in said if entry is None or entry.run not in runs]
        atomic.write_bytes(self.path, b"\n".join(rest), scratch=self._dot / "tmp")


def _is_half(line: bytes) -> bool:
    """It begins as all do, and lacks its end; one of which the last byte alone is another lacks nothing."""
    begins = line[: len(_BEGINNING)] == _BEGINNING[: len(line)]
    return begins and not line.endswith(b"}") and _parsed(line[:-1] + b"}") is None


def _parsed(line: bytes) -> Entry | None:
    """None where it is not, to the byte, what was written."""
    try:
        value = json.loads(line)
        found = Entry(str(value["run"]), int(value["size"]), str(value["sha256"]), value["own"] is True)
    except UNREADABLE:
        return None
    return found if found.line() == line else None
