"""What was last heard of each remote: `.llmos/remotes/NAME.json` says once more where its refs are, for no operation moves
`refs/remotes/NAME/...`: one that is gone since, or says something else, would be believed.

    {"hash", "refs": {"heads/main": [ID], "tags/v1": [ID, null]}}      `hash` is that of the same line with `hash` the empty text

A ref may be at any of its ids, null for none. There is one but while push or fetch moves it: it is at the old or at the new one then, so
that a kill in between is no damage. A remote that was heard of before there were such files has none, until it is heard of again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_cli.core import atomic, own_hash
from llmos_cli.core.listing import entries, is_file, read_bytes
from llmos_cli.core.refs import HEADS, ID, REMOTES, RUNS, STAGES, TAGS
from llmos_cli.errors import UNREADABLE, Corrupt

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

FOLDER = ".llmos/remotes/"
_SUFFIX = ".json"
Heard = Mapping[str, tuple[str | None, ...]]
"""`heads/main` -> where it may be."""


@dataclass(frozen=True)
class Astray:
    """A ref of a remote that is not where it was last heard of. `now`: empty where it makes no sense, None where it is gone;
    `heard`: where it may be; empty where nobody noted that, and it names what nothing here tells of."""

    ref: str
    now: str | None
    heard: tuple[str | None, ...] = ()

    @property
    def remote(self) -> str:
        return self.ref.removeprefix(REMOTES).partition("/")[0]


def file_of(remote: str) -> str:
    """Relative to the workspace."""
    return f"{FOLDER}{remote}{_SUFFIX}"


@contextmanager
def moving(ws: Workspace, remote: str, after: Mapping[str, str | None]) -> Iterator[None]:
    """Under the lock of the refs: within the block those of a remote (`heads/main`) go where `after` says, None to take one away."""
    before = ws.refs.under(f"{REMOTES}{remote}/")
    both = {ref: (before.get(ref), after.get(ref, before.get(ref))) for ref in {*before, *after}}
    if any(old != new for old, new in both.values()):
        _write(ws, remote, {ref: tuple(dict.fromkeys(values)) for ref, values in both.items()})
    yield
    note(ws, remote)


def note(ws: Workspace, remote: str) -> None:
    """Where they are is where they were heard of."""
    _write(ws, remote, {ref: (value,) for ref, value in ws.refs.under(f"{REMOTES}{remote}/").items()})


def read(ws: Workspace, remote: str) -> Heard | None:
    """None where it was never noted; Corrupt where that was damaged."""
    try:
        text = read_bytes(ws.root / file_of(remote))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if (found := _parse(text)) is None:
        raise Corrupt(f"{file_of(remote)} is not what was written", hint="`llmos fsck --repair` writes it anew")
    return found


def noted(ws: Workspace) -> list[str]:
    """Remotes of which there is such a file."""
    return [each.name.removesuffix(_SUFFIX) for each in entries(ws.root / FOLDER) if _fits(each)]


def strange(ws: Workspace) -> Iterator[os.DirEntry[str]]:
    """What lies among them and is none."""
    return (each for each in entries(ws.root / FOLDER) if not _fits(each))


def astray(ws: Workspace) -> Iterator[Astray]:
    """All refs of remotes that are not where they were last heard of."""
    there = {name: _said(ws, REMOTES + name) for name in ws.refs.names(REMOTES)}
    for remote in sorted({*noted(ws), *(name.partition("/")[0] for name in there)}):
        own = {ref: value for name, value in there.items() if (ref := name.removeprefix(f"{remote}/")) != name}
        for ref, now, heard in _wrong(ws, own, _readable(ws, remote)):
            yield Astray(f"{REMOTES}{remote}/{ref}", now, heard)


def check(ws: Workspace, *, undone: str) -> None:
    """Corrupt where one is astray: what it named would go for nothing. `undone`: what was therefore not done."""
    if (found := next(astray(ws), None)) is not None:
        raise Corrupt(
            f"{found.ref} is not where {found.remote} was last heard of, and {undone}",
            hint="`llmos fsck` tells more; `llmos fsck --repair` or `llmos fetch` puts it back",
        )


def is_here(ws: Workspace, checkpoint: str) -> bool:
    """Or was given up."""
    return (ws.checkpoints / checkpoint).is_dir() or checkpoint in ws.lost


def told_of(ws: Workspace) -> set[str]:
    """Every checkpoint that anything here ever told of, but for refs of remotes alone: manifests, operations, refs of our own, and what
    was heard. What none of these knows nobody has lost."""
    parents = ws.index.parents()
    found = {*parents, *(each for known in parents.values() for each in json.loads(known))}
    for operation in ws.oplog.operations():
        moved = (value for change in operation.changes if change.is_ref for value in (change.before, change.after))
        found |= {*filter(None, moved), *operation.drops, *operation.collects, *operation.seals, *operation.unseals}
    found |= {_said(ws, prefix + name) for prefix in (HEADS, TAGS, STAGES, RUNS) for name in ws.refs.names(prefix)}
    for remote in noted(ws):
        found |= {each for values in (_readable(ws, remote) or {}).values() for each in values if each}
    return found


def _wrong(
    ws: Workspace, own: Mapping[str, str], heard: Heard | None
) -> Iterator[tuple[str, str | None, tuple[str | None, ...]]]:
    if heard is not None:
        for ref in sorted({*own, *heard}):
            if own.get(ref) not in (may := heard.get(ref, (None,))):
                yield ref, own.get(ref), may
        return
    unknown = {ref: value for ref, value in own.items() if value and not is_here(ws, value)}
    known = told_of(ws) if unknown else set()
    yield from ((ref, value, ()) for ref, value in sorted(unknown.items()) if value not in known)


def _said(ws: Workspace, ref: str) -> str:
    """Empty where it makes no sense, which is told elsewhere."""
    try:
        return ws.refs.read(ref) or ""
    except Corrupt:
        return ""


def _readable(ws: Workspace, remote: str) -> Heard | None:
    try:
        return read(ws, remote)
    except Corrupt:
        return None


def _write(ws: Workspace, remote: str, heard: Heard) -> None:
    path, text = ws.root / file_of(remote), _text(heard).encode()
    with suppress(FileNotFoundError, NotADirectoryError):
        if read_bytes(path) == text:
            return
    atomic.write_bytes(path, text, scratch=ws.dot / "tmp")


def _text(heard: Heard) -> str:
    """All of a file, to the byte."""
    value = {"refs": {ref: list(values) for ref, values in heard.items() if values != (None,)}}
    return own_hash.line(value) + "\n"


def _parse(text: bytes) -> Heard | None:
    """None where it is no such file, to the byte."""
    try:
        found = {ref: tuple(values) for ref, values in json.loads(text)["refs"].items()}
        sound = all(each is None or ID.fullmatch(each) for values in found.values() for each in values)
        return found if sound and _text(found).encode() == text else None
    except UNREADABLE:
        return None


def _fits(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(_SUFFIX) and is_file(entry)
