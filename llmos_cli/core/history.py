"""What the operation log says of the past: where refs were left, and what operations moved, removed, freed and still protect.

One line of `.llmos/operations.jsonl` per operation, oldest first. Where thousands of lines are asked for a few, each is looked at as
bytes before it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmos_cli.core import lines, lost
from llmos_cli.core.dropped import FOLDER
from llmos_cli.core.listing import plainly
from llmos_cli.core.operation import Change, Operation, parse
from llmos_cli.core.refs import DATA, HEAD, MOVED, SNAPSHOTS, SYMBOLIC

_TIME = re.compile(rb'"time": ([0-9]+(?:\.[0-9]+)?)[,}]')
"""Of an operation alone: within a text that it holds, each quote has a backslash before it."""
_TEXT = rb'"[ !#-\[\]-~]*"'
"""With nothing in it that JSON escapes."""
_VALUE = rb'(?:null|"([ !#-\[\]-~]*)")'
_MOVE = (
    rb'\{"id": %(text)s, "name": %(text)s, "changes": \[\{"what": "(?!refs/data/)(?:HEAD"|refs/[ !#-\[\]-~]*"), "before": %(value)s, "after": %(value)s\}\], '
    rb'"time": [0-9]+(?:\.[0-9]+)?, "run": %(text)s, "kind": %(text)s, "of": %(text)s'
    rb'(?:, "by": \{"user": %(text)s, "host": %(text)s, "command": %(text)s\})?\}'
) % {b"text": _TEXT, b"value": _VALUE}
"""All of a line that is as most are: one ref went from here to there."""
_FREES = (b'"drops"', b'"collects"')
_SNAPSHOT = f".llmos/{SNAPSHOTS}/".encode()


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

    def newest(self) -> Iterator[Operation]:
        """All operations, the last one first: who asks for a few has no more than those read."""
        return filter(None, map(parse, lines.backwards(self.path)))

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
        # Many an operation may have moved a tag there: which are of a run is told before they are parsed.
        made = rb'"after": "%s"\}\], "time": [^,]+, "run": "[^"]' % checkpoint.encode()
        for operation in filter(None, map(parse, lines.matching(self.path, made))):
            if operation.kind == "do" and (before := operation.changes[-1].before):
                return before, operation.time
        return None

    def freed_since(self, identifier: str) -> set[str]:
        """Checkpoints of which something was freed for good after that operation."""
        marks = (f'"id": "{identifier}"'.encode(), *_FREES)
        freed: set[str] = set()
        for operation in _parsed(lines.backwards(self.path), marks):
            if operation.id == identifier:
                break
            freed |= {*operation.drops, *operation.collects}
        return freed

    def collected(self) -> set[str]:
        """Checkpoints that were removed altogether. That they are gone is no damage, whatever else the log says of them."""
        return {each for operation in _parsed(lines.read(self.path), [b'"collects"']) for each in operation.collects}

    def protected(self, since: float) -> set[str]:
        """Ids that operations at or after `since` moved a ref from or to, or removed the weights of."""
        moved = re.compile(_MOVE).fullmatch
        plain: set[bytes | None] = set()
        found: set[str] = set()
        for line in self._since(since):
            if (move := moved(line)) is not None:  # a tenth of what parsing it takes, and there may be thousands
                plain.update(move.groups())
            elif (operation := parse(line)) is not None:
                found |= _protects(operation)
        found |= {value.decode() for value in plain if value}
        return {value for value in found if not value.startswith(SYMBOLIC)}

    def removed(self, since: float) -> set[str]:
        """Ids whose weights operations at or after `since` removed, and nothing has freed since: `undo` must find them again."""
        found: set[str] = set()
        for operation in _parsed(self._since(since), [FOLDER.encode(), *_FREES]):
            found |= {change.removes for change in operation.changes}
            found -= {*operation.drops, *operation.collects}
        return found - {""}

    def without_weights(self) -> set[str]:
        """Ids whose weights were removed by the last operation that said anything of them."""
        found: set[str] = set()
        for operation in _parsed(lines.read(self.path), [FOLDER.encode(), b'"drops"']):
            for change in operation.changes:
                (found.discard if change.after is None else found.add)(change.removes)
            found |= {*operation.drops}
        return found - {""}

    def given_up(self) -> dict[str, str]:
        """Checkpoints that are given up by the last operation that said anything of that, and were not collected since -> their marks."""
        found: dict[str, str] = {}
        for line in lines.read(self.path):
            if (b'"collects"' in line or lost.FOLDER.encode() in line) and (operation := parse(line)) is not None:
                said = {change.loses: change.after for change in operation.changes if change.loses}
                gone = {*operation.collects, *(each for each, text in said.items() if text is None)}
                found = {each: text for each, text in {**found, **said}.items() if text and each not in gone}
        return found

    def named_snapshots(self, since: float) -> set[str]:
        """Ids of the snapshots of data that operations at or after `since` gave a name, or took one from."""
        operations = _parsed(self._since(since), [DATA.encode()])
        changes = (change for operation in operations for change in operation.changes if change.what.startswith(DATA))
        return {value for change in changes for value in (change.before, change.after) if value}

    def snapshots(self, since: float) -> set[str]:
        """Descriptions of the snapshots of data that operations at or after `since` removed: `undo` must find their pieces again."""
        operations = _parsed(self._since(since), [_SNAPSHOT])
        changes = (change for operation in operations for change in operation.changes if change.snapshot)
        return {text for change in changes for text in (change.before, change.after) if text}

    def removed_snapshots(self) -> set[str]:
        """Ids of the snapshots of data that an operation removed, and none brought back."""
        changes = (change for operation in _parsed(self._since(0), [_SNAPSHOT]) for change in operation.changes)
        left = {change.snapshot: change.after for change in changes if change.snapshot}
        return {snapshot for snapshot, text in left.items() if text is None}

    def _since(self, since: float) -> Iterator[bytes]:
        """Lines are told by their time alone: parsing all of them would take longer than the rest of `gc`. None is taken for the first:
        a clock may have jumped."""
        for line in lines.read(self.path):
            time_ = _TIME.search(line)
            if time_ is None or float(time_[1]) >= since:
                yield line


def _parsed(texts: Iterable[bytes], marks: Sequence[bytes]) -> Iterator[Operation]:
    """Of lines those in which one of the marks is: thousands may be asked for a few."""
    marked = (text for text in texts if any(mark in text for mark in marks))
    return filter(None, map(parse, marked))


def _protects(operation: Operation) -> set[str]:
    changes = [change for change in operation.changes if not change.what.startswith(DATA)]
    values = (value for each in changes for value in ((each.before, each.after) if each.is_ref else (each.removes,)))
    return {value for value in values if value}
