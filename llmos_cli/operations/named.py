"""Lists of branches and tags, and what both must not be called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmos_cli.core.names import folded, in_the_way
from llmos_cli.core.refs import DATA, HEADS
from llmos_cli.core.view import Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import UsageError
from llmos_cli.operations.log import aligned
from llmos_cli.operations.summary import GONE, Summary, age, shown_id, summarize, told


@dataclass(frozen=True)
class Named:
    name: str
    checkpoint: Summary


@dataclass(frozen=True)
class NamedList:
    """`kind`: branch or tag; `current`: the branch of HEAD, which may not have a checkpoint yet."""

    kind: str
    refs: tuple[Named, ...]
    current: str | None

    def view(self) -> View:
        rows = [self._row(ref) for ref in self.refs]
        if not rows:
            return f"no {self.kind}{'es' if self.kind == 'branch' else 's'} yet"
        return Lines(aligned(rows))

    def _row(self, ref: Named) -> list[str | Span]:
        mark = ("* " if ref.name == self.current else "  ") if self.kind == "branch" else ""
        made = ref.checkpoint
        sealed = " (sealed)" if made.sealed else ""
        if not (made.time or made.lost):
            return [mark + ref.name, shown_id(made.id), GONE, "", ""]
        return [mark + ref.name, shown_id(made.id), made.made_by + sealed, age(made.time), told(made.metrics)]


def listed(ws: Workspace, prefix: str) -> Iterator[tuple[str, Summary]]:
    ws.tell_moved(prefix)
    for name, checkpoint in ws.refs.under(prefix).items():
        yield name, summarize(ws, checkpoint)


def check_free(ws: Workspace, prefix: str, name: str, *, leaves: str = "") -> None:
    """`a` and `a/b` cannot both be names: one would be a file and a folder; nor can `Main` and `main`: some disks take them for one.
    `leaves`: a name that makes room for it."""
    taken = set(ws.refs.names(prefix))
    other = None if name in taken else in_the_way(name, sorted(taken - {leaves}))
    if other is not None:
        kind = {HEADS: "branch", DATA: "snapshot"}.get(prefix, "tag")
        alike = folded(other) == folded(name)
        raise UsageError(
            f"{kind} {other} stands in the way of {name}{', which some disks take for it' if alike else ''}",
            hint="choose a name that differs by more than that"
            if alike
            else "choose a name that does not begin like it",
        )
