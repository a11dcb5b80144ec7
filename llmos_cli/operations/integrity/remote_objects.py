"""The objects of a remote: each read as a stream and hashed once, and whom it hurts where one is missing or damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import Heard
from llmos_cli.errors import Corrupt
from llmos_cli.events import Emit
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.integrity.remote_files import shown
from llmos_cli.operations.integrity.remote_survey import UNSIZED, Named, Survey, Wrong, tried
from llmos_cli.operations.summary import SHORT

_SHOWN = 2
"""Of those that name a damaged object."""


class Contents:
    """All objects of a remote, each read and hashed once: `bad`: listed name -> what is wrong with it; `good`: listed name -> its bytes."""

    def __init__(self, there: Remote, survey: Survey, emit: Emit) -> None:
        self._there, self._survey = there, survey
        self._listed = {f"{layout.OBJECTS}/{each}" for each in survey.objects}
        self._names = {each: there.stored(layout.object_name(each.sha256)) for each in survey.named}
        self.bad: dict[str, str] = {}
        self.good = {name: count for name, count in survey.proven.items() if name in self._listed}
        self.read, self.bytes = len(self.good), sum(self.good.values())
        self.look(sorted(self._listed - self.good.keys()), emit)

    def look(self, names: Iterable[str], emit: Emit) -> None:
        """Read these, whether or not they were read before."""
        listed = list(names)
        meter = Meter("fsck", sum(self._sizes(listed)), emit)
        for name, found in zip(
            listed, in_parallel(lambda each: self._hashed(each, meter.heard), listed, meter), strict=True
        ):
            self.bad.pop(name, None)
            self._listed.add(name)
            self.read += 1
            if isinstance(found, Wrong):
                self.bad[name] = found.what
            else:
                self.good[name] = found
                self.bytes += found
        meter.end()

    def _sizes(self, names: list[str]) -> Iterator[int]:
        """As they are named; nobody has to be asked for most."""
        told = {self._names[each]: each.size for each in self._survey.named if each.size != UNSIZED}
        yield from (told[name] for name in names if name in told)
        others = [name for name in names if name not in told]
        yield from (size for size in in_parallel(self._size, others))

    def _size(self, name: str) -> int:
        found = tried(self._there, lambda: self._there.size_listed(name))
        return found if isinstance(found, int) else 0

    def _hashed(self, name: str, heard: Heard) -> int | Wrong:
        def read() -> int:
            digest, count = hashlib.sha256(), 0
            for chunk in self._there.chunks_listed(name):
                digest.update(chunk)
                count += len(chunk)
                heard(len(chunk))
            if self._there.stored(layout.object_name(digest.hexdigest())) != name:
                raise Corrupt("has other bytes than its name says", hint=hostile.HINT)
            return count

        return tried(self._there, read)

    @property
    def wrong(self) -> dict[str, str]:
        """SHA-256 of all that is named and missing, or not as it should be -> what is wrong."""
        told = [(entry.sha256, self._told(name, entry.size)) for entry, name in self._names.items()]
        return {sha256: what for sha256, what in told if what}

    def _told(self, name: str, expected: int) -> str:
        if name not in self._listed:
            return "is missing"
        if name in self.bad:
            return self.bad[name]
        there = self.good[name]
        return "" if expected in (UNSIZED, there) else f"has {there:,} bytes, and not the {expected:,} of its entry"

    @property
    def unnamed(self) -> dict[str, str]:
        """Damaged ones that nothing names: listed name -> what is wrong."""
        named = set(self._names.values())
        return {name: what for name, what in self.bad.items() if name not in named}


def problems(survey: Survey, contents: Contents) -> Iterator[Problem]:
    wrong = contents.wrong
    users: dict[str, list[Named]] = {}
    for each in survey.names() if wrong else ():
        if each.entry.sha256 in wrong:
            users.setdefault(each.entry.sha256, []).append(each)
    for sha256, named in users.items():
        yield _problem(survey, sha256, wrong[sha256], named)
    for name, what in sorted(contents.unnamed.items()):
        told = f"{what}; nothing names it yet, and a push that comes to need it takes it for whole"
        yield Problem(shown(name), told)
    for backup, what in survey.unlisted.items():
        if survey.backups[backup].tree.sha256 not in wrong:
            yield Problem(layout.backup_name(backup), what, hurts=(f"backup {backup}",))


def _problem(survey: Survey, sha256: str, what: str, named: list[Named]) -> Problem:
    by = ", ".join(each.by for each in named[:_SHOWN])
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    checkpoints = [checkpoint for each in named for checkpoint in each.checkpoints]
    hurts = survey.hurts(checkpoints, [each.backup for each in named if each.backup])
    return Problem(f"object {sha256[:SHORT]}", f"{what}: {by}{more}", (checkpoints or [""])[0], hurts=hurts)
