"""What the operation log says of the past: where refs were left, and what operations moved, removed, freed and still protect.

One line of `.llmos/operations.jsonl` per operation, oldest first. Where thousands of lines are asked for a few, each is looked at as
bytes before it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmos_cli.core import lines
from llmos_cli.core.dropped import FOLDER
from llmos_cli.core.listing import plainly
from llmos_cli.core.operation import Change, Operation, parse
from llmos_cli.core.refs import DATA, HEAD, MOVED, SYMBOLIC

_TIME = re.compile(rb'"time": ([0-9]+(?:\.[0-9]+)?)[,}]')
"""Of an operation alone: within a text that it holds, each quote has a backslash before it."""


class History:
    def __init__(self, path: Path) -> None:
        self.path = path

    def operations(self) -> Iterator[Operation]:
        """All operations, oldest first; a line cut off by a crash is skipped."""
        try:
            with open(self.path, "rb", opener=plainly) as file:
                for line in file:
                    if (operation := parse(line)) is not None:
                        yield operation
        except FileNotFoundError:
            return

    def unreadable(self) -> list[int]:
        """Numbers of the lines that are no operation, but for one that a crash cut off."""
        return [number for number, line in enumerate(lines.read(self.path)[:-1], 1) if parse(line) is None]

    def left(self, operations: Iterable[Operation] | None = None) -> dict[str, tuple[str | None, str]]:
        """Where operations (all that are logged) left `HEAD`, branches, tags, stages and names of data that they moved, and what the last one
        was called."""
        found: dict[str, tuple[str | None, str]] = {}
        for operation in self.operations() if operations is None else operations:
            moved = (change for change in operation.changes if change.what == HEAD or change.what.startswith(MOVED))
            found |= {change.what: (change.after, operation.name) for change in moved}
        return found

    def last_of(self, ref: str) -> Change | None:
        """The last change of a ref; None where no operation made one."""
        for line in lines.holding(self.path, f'"what": {json.dumps(ref)}'.encode()):
            operation = parse(line)
            if operation is not None and (found := [each for each in operation.changes if each.what == ref]):
                return found[-1]
        return None

    def left_for(self, checkpoint: str) -> tuple[str, float] | None:
        """Where the branch (or detached HEAD) was when a run moved it to `checkpoint`: that id and the time."""
        # A substring first: parsing thousands of lines would take longer than the rest of `log`.
        for line in lines.read(self.path):
            if (
                checkpoint.encode() in line
                and (operation := parse(line)) is not None
                and operation.run
                and operation.kind == "do"
            ):
                for change in operation.changes:
                    if change.after == checkpoint and change.before:
                        return change.before, operation.time
        return None

    def freed_since(self, identifier: str) -> set[str]:
        """Checkpoints of which something was freed for good after that operation."""
        freed: set[str] = set()
        for operation in self.operations():
            freed = set() if operation.id == identifier else freed | {*operation.drops, *operation.collects}
        return freed

    def collected(self) -> set[str]:
        """Checkpoints that were removed altogether. That they are gone is no damage, whatever else the log says of them."""
        found: set[str] = set()
        for line in lines.read(self.path):
            if b'"collects"' in line and (operation := parse(line)) is not None:
                found |= {*operation.collects}
        return found

    def protected(self, since: float) -> set[str]:
        """Ids that operations at or after `since` moved a ref from or to, or removed the weights of."""
        return {
            value
            for operation in self._since(since)
            for change in operation.changes
            if not change.what.startswith(DATA)
            for value in ((change.before, change.after) if change.is_ref else (change.removes,))
            if value and not value.startswith(SYMBOLIC)
        }

    def removed(self, since: float) -> set[str]:
        """Ids whose weights operations at or after `since` removed, and nothing has freed since: `undo` must find them again."""
        found: set[str] = set()
        for operation in self._since(since):
            found |= {change.removes for change in operation.changes}
            found -= {*operation.drops, *operation.collects}
        return found - {""}

    def without_weights(self) -> set[str]:
        """Ids whose weights were removed by the last operation that said anything of them."""
        found: set[str] = set()
        for line in lines.read(self.path):
            if (b'"drops"' in line or FOLDER.encode() in line) and (operation := parse(line)) is not None:
                for change in operation.changes:
                    (found.discard if change.after is None else found.add)(change.removes)
                found |= {*operation.drops}
        return found - {""}

    def named_snapshots(self, since: float) -> set[str]:
        """Ids of the snapshots of data that operations at or after `since` gave a name, or took one from."""
        changes = (change for operation in self._since(since) for change in operation.changes)
        return {value for each in changes if each.what.startswith(DATA) for value in (each.before, each.after) if value}

    def snapshots(self, since: float) -> set[str]:
        """Descriptions of the snapshots of data that operations at or after `since` removed: `undo` must find their pieces again."""
        changes = (change for operation in self._since(since) for change in operation.changes if change.snapshot)
        return {text for change in changes for text in (change.before, change.after) if text}

    def _since(self, since: float) -> Iterator[Operation]:
        """Older lines are told by their time alone: parsing all of them would take longer than the rest of `gc`. None is taken
        for the first: a clock may have jumped."""
        for line in lines.read(self.path):
            time_ = _TIME.search(line)
            if (time_ is None or float(time_[1]) >= since) and (operation := parse(line)) is not None:
                yield operation
