"""An operation: what it changes, removes, seals, and the line of JSON that the log (`oplog.py`) keeps of it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from llmos_cli.core import lost, reach
from llmos_cli.core.audit import Author, author
from llmos_cli.core.dropped import FOLDER
from llmos_cli.core.names import folded
from llmos_cli.core.redaction import redacted
from llmos_cli.core.refs import HEAD, HEADS, SNAPSHOTS, SYMBOLIC, TAGS
from llmos_cli.core.view import apart
from llmos_cli.errors import UNREADABLE, Conflict, UsageError

Kind = Literal["do", "undo", "redo"]

_LISTS = ("drops", "collects", "seals", "unseals")
_LEFT_OUT = (*_LISTS, "by")
"""Of a line, where they are empty."""
_DATA = f".llmos/{SNAPSHOTS}/"
_SIGNED = re.compile(r"\.llmos/signatures/([0-9a-f]{64})\.sig")


@dataclass(frozen=True)
class Change:
    """`what`: a ref (`HEAD`, `refs/...`) or a file of the workspace (`configs/train.yaml`); its content, None: absent."""

    what: str
    before: str | None
    after: str | None

    @property
    def name(self) -> str:
        """`main`, `tags/v1`, `configs/train.yaml`"""
        return self.what.removeprefix(HEADS).removeprefix("refs/")

    @property
    def is_ref(self) -> bool:
        return self.what == HEAD or self.what.startswith("refs/")

    @property
    def removes(self) -> str:
        """The checkpoint whose mark of removed weights this sets or takes away; empty where it is another change."""
        return self.what.removeprefix(FOLDER) if self.what.startswith(FOLDER) else ""

    @property
    def loses(self) -> str:
        """The checkpoint whose loss this accepts, or takes that back; empty where it is another change."""
        return self.what.removeprefix(lost.FOLDER) if self.what.startswith(lost.FOLDER) else ""

    @property
    def snapshot(self) -> str:
        """The snapshot of data whose description this takes away or puts back; empty where it is another change."""
        return self.what.removeprefix(_DATA).removesuffix(".json") if self.what.startswith(_DATA) else ""

    @property
    def signed(self) -> str:
        """The checkpoint whose signature this writes or takes away; empty where it is another change."""
        found = _SIGNED.fullmatch(self.what)
        return found[1] if found else ""

    def alike(self, one: str | None, other: str | None) -> bool:
        """Whether two contents come to the same: a snapshot that was taken again, at another time, has the same rows."""
        return one == other or bool(self.snapshot and one and other)

    def reversed(self) -> Change:
        return Change(self.what, self.after, self.before)


@dataclass(frozen=True)
class Operation:
    """`kind`: `do`, or `undo`/`redo` of the operation `of`. `time` in seconds since the epoch. What `run` committed is what
    its last change names. What it freed for good is no change: `drops` are checkpoints whose weights it removed, `collects` those
    that it removed altogether, which nothing named. `seals`, `unseals`: those that it encrypted, or opened, which takes their key,
    so that no undo does it. `by`: for the audit log, which a crash may keep waiting."""

    id: str
    name: str
    changes: tuple[Change, ...]
    time: float
    run: str = ""
    kind: Kind = "do"
    of: str = ""
    drops: tuple[str, ...] = ()
    collects: tuple[str, ...] = ()
    seals: tuple[str, ...] = ()
    unseals: tuple[str, ...] = ()
    by: Author | None = None


def new(name: str, changes: Sequence[Change], run: str = "", kind: Kind = "do", of: str = "") -> Operation:
    return Operation(os.urandom(4).hex(), redacted(name), tuple(changes), time.time(), run, kind, of, by=author())


def written(operation: Operation) -> str:
    kept = {key: value for key, value in asdict(operation).items() if value or key not in _LEFT_OUT}
    return json.dumps(kept) + "\n"


def parse(line: bytes) -> Operation | None:
    try:
        value = json.loads(line)
        changes = tuple(Change(**change) for change in value.pop("changes"))
        value |= {each: tuple(value[each]) for each in _LISTS if each in value}
        by = Author(**value.pop("by")) if value.get("by") else None
        operation = Operation(changes=changes, by=by, **value)
        return operation if _sound(operation) else None
    except UNREADABLE:
        return None


def _sound(operation: Operation) -> bool:
    """Nothing that is read from a file is taken for an operation that reaches beyond what operations do."""
    checkpoints = [checkpoint for each in _LISTS for checkpoint in getattr(operation, each)]
    texts = [operation.id, operation.name, operation.run, operation.kind, operation.of, *checkpoints]
    texts += [change.what for change in operation.changes]
    contents = [content for change in operation.changes for content in (change.before, change.after)]
    return (
        all(isinstance(text, str) for text in texts)
        and all(content is None or isinstance(content, str) for content in contents)
        and type(operation.time) in (int, float)
        and reach.may_be_run(operation.run)
        and reach.are_ids(checkpoints)
        and all(reach.may_change(change.what, (change.before, change.after)) for change in operation.changes)
    )


def check_secrets(operation: Operation) -> None:
    """The log keeps configs as they were and as they are."""
    for change in operation.changes:
        if not change.what.endswith((".yaml", ".yml")):
            continue
        for text in (change.before, change.after):
            if text is not None and redacted(text) != text:
                raise UsageError(
                    f"{change.what} holds a secret, which the log of operations would keep for everybody to read",
                    hint="take it out: a variable such as LLMOS_TUNE__STORAGE can say it, or a file of yours that the tool reads",
                )


def told(value: str | None, other: str | None = None) -> str:
    """What a ref is moved from or to, in words; an id with as many digits as tell it from the `other`."""
    if value is None:
        return "nothing"
    if value.startswith(SYMBOLIC):
        return value.removeprefix(SYMBOLIC + HEADS)
    return apart(value, [other or ""])


def moved_meanwhile(operation: Operation, change: Change, now: str | None) -> Conflict:
    """What it changes is not as it was when it was last seen."""
    if change.is_ref:
        return Conflict(
            f"{change.name} is at {told(now, change.before)} and not at {told(change.before, now)} any more",
            hint="`llmos op log` shows what moved it",
        )
    what = "is gone" if now is None else "was made" if change.before is None else "was changed"
    if operation.kind == "do":
        return Conflict(f"{change.name} {what} meanwhile", hint="look at it, and try again")
    loss = "" if now is None else f", and {operation.kind} would lose that"
    return Conflict(
        f"{change.name} {what} since{loss}",
        hint="put it back as it was; `llmos op log` lists the operations, `llmos undo ID` takes back another one",
    )


def blocked(change: Change, other: str) -> Conflict:
    """`a` and `a/b` cannot both be refs: one would be a file and a folder; nor can `Main` and `main`: some disks take them for one."""
    name = other.removeprefix(HEADS).removeprefix(TAGS)
    hint = "`llmos op log` shows what made it"
    if other.startswith(HEADS):
        hint = f"`llmos branch -m {name} NEW` gives it another name"
    if other.startswith(TAGS):
        hint = f"`llmos tag NEW {name}` and `llmos tag -d {name}` give it another name"
    alike = ", which some disks take for it" if folded(other) == folded(change.what) else ""
    return Conflict(f"{_kind(other)} stands in the way of {_kind(change.what)}{alike}", hint=hint)


def _kind(ref: str) -> str:
    """`branch try/one`"""
    if ref.startswith(HEADS):
        return f"branch {ref.removeprefix(HEADS)}"
    return f"tag {ref.removeprefix(TAGS)}" if ref.startswith(TAGS) else ref.removeprefix("refs/")
