"""Refs of remotes: each is where the remote was last heard of (`core/heard.py`). One that is not is no lost checkpoint but a ref gone
wrong: it gets back what was noted, or what the remote itself says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmos_cli.core import heard
from llmos_cli.core.heard import Astray
from llmos_cli.core.listing import folders
from llmos_cli.core.operation import told
from llmos_cli.core.refs import REMOTES
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.view import apart
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, LlmosError, NotPlain
from llmos_cli.events import Emit, Note
from llmos_cli.operations.integrity.problem import Problem, Repaired


def tracking(ws: Workspace) -> Iterator[Problem]:
    """What makes no sense is told with all other refs."""
    for remote in heard.noted(ws):
        try:
            heard.read(ws, remote)
        except Corrupt:
            yield Problem(heard.file_of(remote), "is not what was written")
    for each in heard.astray(ws):
        if each.now != "":
            yield Problem(each.ref, _what(ws, each), lacks=_lacks(ws, each))


def repaired(ws: Workspace, places: Sequence[Remote], emit: Emit) -> Iterator[Repaired]:
    """Where the note is damaged, the refs are what it said: one thing was, and not both."""
    said = _asked([each for each in heard.astray(ws) if not each.heard], places, emit)
    with ws.oplog.locked(ws.emit):
        for each in list(heard.astray(ws)):
            values = each.heard or said.get(each.ref, ())
            if (value := next((value for value in values if value is None or heard.is_here(ws, value)), "")) != "":
                ws.refs.write(each.ref, value)
                yield Repaired(each.ref, f"what {each.remote} was last heard to have" if each.heard else each.remote)
        for remote in heard.noted(ws):
            try:
                heard.read(ws, remote)
            except NotPlain:
                continue
            except Corrupt:
                heard.note(ws, remote)
                yield Repaired(heard.file_of(remote), f"{REMOTES}{remote}")


def _what(ws: Workspace, astray: Astray) -> str:
    now, remote = astray.now, astray.remote
    if astray.heard:
        last = astray.heard[-1]
        return f"is at {told(now, last)}, and {remote} was last heard to have it at {told(last, now)}"
    ends = f"`llmos fetch {remote}` asks {remote} where it is, `llmos remote rm {remote}` forgets it"
    return f"names {apart(now or '', folders(ws.checkpoints))}, which nothing else here tells of: {ends}"


def _lacks(ws: Workspace, astray: Astray) -> str:
    """What it was at, or is, may itself be missing, and a remote have it."""
    values = astray.heard or (astray.now,)
    return next((value for value in values if value and not heard.is_here(ws, value)), "")


def _asked(unnoted: Sequence[Astray], places: Sequence[Remote], emit: Emit) -> dict[str, tuple[str | None, ...]]:
    """What the remotes themselves say of these."""
    found: dict[str, tuple[str | None, ...]] = {}
    for there in places:
        if own := [each.ref for each in unnoted if each.remote == there.name]:
            try:
                refs = there.refs()
            except LlmosError as error:
                emit(Note(f"{there.name} did not say where its branches and tags are: {error.message}", "warning"))
                continue
            for ref in own:
                now = refs.get(f"refs/{ref.removeprefix(f'{REMOTES}{there.name}/')}")
                found[ref] = (now.value if now else None,)
    return found
