"""Signatures of a checkpoint that a remote and a workspace both have, and which of them took the place of the other.

A remote says with each what it replaced there, by their SHA-256; of the one that is here the log of operations knows. Where neither came
after the other, two people signed: each keeps what it has, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmos_cli.core import lines, signatures
from llmos_cli.core.operation import Change, parse
from llmos_cli.core.view import short
from llmos_cli.events import Note

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

Newer = Literal["ours", "theirs", "neither"]


@dataclass(frozen=True)
class Vouching:
    """The `bundle` that a remote has or is sent, and the hashes of those whose place it took."""

    bundle: str
    replaces: frozenset[str] = frozenset()

    def said(self, checkpoint: str) -> dict[str, object]:
        """As it stands on a remote."""
        replaces = {"replaces": sorted(self.replaces)} if self.replaces else {}
        return {"checkpoint": checkpoint, "bundle": self.bundle, **replaces}


def hash_of(bundle: str) -> str:
    return hashlib.sha256(bundle.encode()).hexdigest()


def to_send(
    ws: Workspace, here: Mapping[str, str], there: Mapping[str, Vouching | None], *, force: bool
) -> dict[str, Vouching]:
    """Of the bundles that are `here` those that the remote lacks or has an older one in the place of; with `force`, whatever it has."""
    found: dict[str, Vouching] = {}
    for checkpoint, bundle in here.items():
        theirs = there.get(checkpoint)
        if theirs and theirs.bundle == bundle:
            continue  # as nearly all are: the log need not be looked through
        replaced = superseded(ws, checkpoint, bundle)
        newer = compare(bundle, replaced, theirs) if theirs else "ours"
        if newer == "ours" or force:
            before = {hash_of(theirs.bundle), *theirs.replaces} if theirs else set()
            found[checkpoint] = Vouching(bundle, (replaced | before) - {hash_of(bundle)})
        elif newer == "neither":
            hint = f"`llmos push --force` puts yours in its place, `llmos sign --remove {short(checkpoint)}` and `llmos fetch` bring theirs"
            ws.emit(
                Note(f"the signature of {short(checkpoint)} stays as it is there, somebody else's: {hint}", "warning")
            )
    return found


def to_take(ws: Workspace, here: Mapping[str, str], there: Mapping[str, Vouching | None]) -> dict[str, str]:
    """Of those that both have the bundles that took the place of those that are `here`."""
    found: dict[str, str] = {}
    for checkpoint, theirs in there.items():
        if theirs is None or theirs.bundle == (bundle := here[checkpoint]):
            continue
        newer = compare(bundle, superseded(ws, checkpoint, bundle), theirs)
        if newer == "theirs":
            found[checkpoint] = theirs.bundle
        elif newer == "neither":
            hint = f"`llmos sign --remove {short(checkpoint)}` and another fetch bring that one"
            ws.emit(Note(f"the signature of {short(checkpoint)} is another there: yours stays ({hint})", "warning"))
    return found


def compare(bundle: str, replaced: Iterable[str], theirs: Vouching) -> Newer:
    """Which of the bundle here, which `replaced` those, and `theirs`, which is another, came after the other. Where each replaced the other
    once, as after an `undo`, whoever sent theirs knew of ours."""
    if hash_of(bundle) in theirs.replaces:
        return "theirs"
    return "ours" if hash_of(theirs.bundle) in replaced else "neither"


def superseded(ws: Workspace, checkpoint: str, bundle: str) -> frozenset[str]:
    """The hashes of all others that were here before, by the log of operations."""
    what = signatures.path(ws.dot, checkpoint).relative_to(ws.root).as_posix()
    operations = map(parse, lines.holding(ws.oplog.path, f'"what": "{what}"'.encode()))
    changes = [each for operation in operations if operation for each in operation.changes if each.what == what]
    texts = {text for each in changes for text in (each.before, each.after) if text}
    return frozenset(map(hash_of, texts - {bundle}))


def taken(ws: Workspace, checkpoint: str, bundle: str) -> Change:
    """That the bundle takes the place of the one that is here."""
    path = signatures.path(ws.dot, checkpoint)
    return Change(path.relative_to(ws.root).as_posix(), signatures.read(ws.dot, checkpoint), bundle)
