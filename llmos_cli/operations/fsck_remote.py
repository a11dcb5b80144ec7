"""fsck --remote: read and hash again all that a remote has, and say what is damaged there and whom it hurts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import whole
from llmos_cli.core.view import Group, Lines, Table, View, size
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit, ignore
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.cargo import counted
from llmos_cli.operations.integrity import remote_files, remote_objects, repairing_remote
from llmos_cli.operations.integrity.problem import Problem, Repaired
from llmos_cli.operations.integrity.remote_objects import Contents
from llmos_cli.operations.integrity.remote_survey import Survey
from llmos_cli.operations.remote import RemoteSettings


@dataclass(frozen=True)
class FsckRemoteResult:
    """`checkpoints` whose manifests are there, with weights or without; `files` and `bytes` that were read. Whom a problem `hurts`: branches
    and tags as `fetch` calls them (`origin/main`), and backups (`backup 20261126-...`)."""

    remote: str
    url: str
    checkpoints: int
    backups: int
    files: int
    bytes: int
    problems: tuple[Problem, ...]
    repaired: tuple[Repaired, ...] = ()

    @property
    def sentence(self) -> str:
        count = len(self.problems)
        hurt = sorted({name for problem in self.problems for name in problem.hurts})
        told = f"{count} thing{'s are' if count > 1 else ' is'} damaged on {self.remote}"
        return told + (f"; hurt: {', '.join(hurt)}" if hurt else "")

    def view(self) -> View:
        rows = [[each.where, each.what, ", ".join(each.hurts)] for each in self.problems]
        has = [counted(self.checkpoints, "checkpoint"), *([counted(self.backups, "backup")] if self.backups else [])]
        checked = f"{', '.join(has)}, {counted(self.files, 'file')}, {size(self.bytes)} hashed"
        verdict = f"{len(rows)} damaged" if rows else "everything is as it was sent"
        return Group(
            [
                Lines([each.told for each in self.repaired]),
                Table(["where", "what", "hurts"], rows, align="lll") if rows else "",
                f"{self.remote} ({self.url}): {checked}: {verdict}",
            ]
        )


def fsck_remote(ws: Workspace, name: str, *, repair: bool = False, emit: Emit = ignore) -> FsckRemoteResult:
    """`repair`: what this workspace has good copies of is sent again. Every object is read once, as a stream; one that was sent again is
    read again."""
    place, done = remotes.named(ws, name), list[Repaired]()
    with remotes.turn(ws, place) if repair else nullcontext():
        there = remotes.opened(ws, place)
        if wrong := _format(there):
            problem, text = wrong
            if not repair:
                return FsckRemoteResult(place.name, place.url, 0, 0, 1, 0, (problem,))
            there.store.put(layout.FORMAT_FILE, whole(text), lambda _: None)
            done.append(Repaired(layout.FORMAT_FILE, "what `llmos push` writes there"))
        there.must_be_begun()
        survey = Survey(ws, there)
        if repair and any(remote_files.problems(ws, there, survey)):
            done += repairing_remote.files(ws, there, survey, emit)
            there = _anew(ws, there, place)
            survey = Survey(ws, there)
        contents = Contents(there, survey, emit)
        if repair and (contents.wrong or contents.unnamed):
            done += repairing_remote.objects(ws, there, survey, contents, emit)
        problems = [*remote_files.problems(ws, there, survey), *remote_objects.problems(survey, contents)]
        there.store.close()
        if done:
            ws.oplog.note(f"fsck --remote {place.name} --repair: {', '.join(each.where for each in done)}")
    return FsckRemoteResult(
        place.name,
        place.url,
        len(survey.whole.keys() | survey.bare.keys()),
        len(survey.backups),
        survey.read + contents.read,
        survey.bytes + contents.bytes,
        tuple(problems),
        tuple(done),
    )


def _anew(ws: Workspace, there: Remote, place: RemoteSettings) -> Remote:
    """What a remote has is listed once, and remembered."""
    there.store.close()
    found = remotes.opened(ws, place)
    found.must_be_begun()
    return found


def _format(there: Remote) -> tuple[Problem, bytes] | None:
    """What is wrong with the file that says that it is a remote, and what should be in it. That of an encrypted one has a salt that nobody
    else knows: where it makes no sense nothing there can be read, which is told when the remote is begun."""
    text = None
    try:
        text = there.store.read(layout.FORMAT_FILE, hostile.REF_LIMIT)
        right = layout.format_text(layout.read_format(text or b"", there.url))
        what = "" if text == right else "was altered, though it means the same"
    except Corrupt:
        right, what = (
            layout.format_text(),
            f"{'is missing' if text is None else 'makes no sense'}: nothing there is read without",
        )
        if not any(name.endswith(".json") for kind in layout.TELLING for name in there.names(kind.rstrip("/"))):
            return None
    return (Problem(layout.FORMAT_FILE, what), right) if what else None
