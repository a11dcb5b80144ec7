"""Revisions: how a user names a checkpoint.

HEAD, @                 the current checkpoint
main, base              a branch or a tag (also heads/main, tags/base)
stages/small            what a stage of the pipeline made last
origin/main             a branch or a tag of a remote, where it was when it was last fetched or pushed
3f2a                    an id, or the beginning of one, of at least 4 digits
20261122-104501-train-3f2a   a run: the checkpoint it made
REV~3  REV^  REV^2      the third ancestor by first parents, the first parent, the second parent
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from llmos_cli.core.refs import HEAD, HEADS, ID, REMOTES, RUNS, TAGS, Refs
from llmos_cli.errors import AmbiguousRevision, NotFound

_GRAMMAR = re.compile(r"(?P<base>[^~^]*)(?P<steps>(?:~\d*|\^\d*)*)", re.DOTALL)
_STEP = re.compile(r"([~^])(\d*)")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_SHOWN = 8

MANIFEST = "manifest.json"
"""`manifest.NAME`, which takes longer to import than a revision to resolve."""
Parents = Callable[[str], Sequence[str]]


def resolve(rev: str, *, refs: Refs, checkpoints: Path, parents: Parents) -> str:
    """The full id that `rev` names; NotFound or AmbiguousRevision, Corrupt where that checkpoint, or its manifest, is missing and was not given
    up. `parents` gives the parents of an id."""
    found = follow(rev, refs=refs, checkpoints=checkpoints, parents=parents)
    if not (checkpoints / found / MANIFEST).is_file():
        from llmos_cli.core.lost import missing  # here: all that is named is here, as a rule

        raise missing(checkpoints.parent, found)
    return found


def follow(rev: str, *, refs: Refs, checkpoints: Path, parents: Parents) -> str:
    """`resolve`, whether that checkpoint is there or not."""
    match = _GRAMMAR.fullmatch(rev)
    if match is None:
        raise NotFound(f"{rev!r} is not a revision", hint="HEAD, a branch, a tag, an id, or one of them with ~N")
    found = _base(match["base"], rev, refs, checkpoints)
    for kind, number in _STEP.findall(match["steps"]):
        found = _step(found, kind, int(number) if number else 1, rev, parents)
    return found


def _base(name: str, rev: str, refs: Refs, checkpoints: Path) -> str:
    if name in (HEAD, "@") or (not name and rev):
        return _head(refs)
    if ID.fullmatch(name) and (checkpoints / name).is_dir():
        return name
    return (
        _named(name, refs)
        or _abbreviated(name, checkpoints)
        or _of_run(name, refs)
        or _abbreviated(name, checkpoints.parent / ".llmos" / "lost")
        or _missing(name, refs, checkpoints)
    )


def _head(refs: Refs) -> str:
    head = refs.head()
    if head.checkpoint is None:
        raise NotFound(f"branch {head.branch} has no checkpoint yet", hint="`llmos train` makes the first")
    return head.checkpoint


def _named(name: str, refs: Refs) -> str | None:
    """A branch or tag; one name for two different checkpoints is ambiguous."""
    if not name or name.startswith((".", "/")) or ".." in name:
        return None
    if name.startswith(("heads/", "tags/", "stages/", "runs/")) and (value := refs.read(f"refs/{name}")):
        return value
    if name.startswith("refs/"):
        return refs.read(name)
    branch, tag = refs.read(HEADS + name), refs.read(TAGS + name)
    if branch and tag and branch != tag:
        raise AmbiguousRevision(
            f"{name} is both a branch ({branch[:12]}) and a tag ({tag[:12]})", hint=f"say heads/{name} or tags/{name}"
        )
    return branch or tag or _of_remote(name, refs)


def _of_remote(name: str, refs: Refs) -> str | None:
    remote, _, rest = name.partition("/")
    if not rest:
        return None
    return refs.read(f"{REMOTES}{remote}/heads/{rest}") or refs.read(f"{REMOTES}{remote}/tags/{rest}")


def _abbreviated(name: str, checkpoints: Path) -> str | None:
    if not _PREFIX.fullmatch(name):
        return None
    found = sorted(entry for entry in _entries(checkpoints) if entry.startswith(name))
    if len(found) > 1:
        raise AmbiguousRevision(
            f"{name} could be any of {len(found)} checkpoints: {_listed([entry[:12] for entry in found])}",
            hint="give more digits",
        )
    return found[0] if found else None


def _of_run(name: str, refs: Refs) -> str | None:
    """The whole id of a run, or its beginning (`20261122-10`)."""
    if "-" not in name or not name[0].isdigit():
        return None
    found = sorted(run for run in refs.names(RUNS) if run.startswith(name))
    if name in found:
        return refs.read(RUNS + name)
    if len(found) > 1:
        raise AmbiguousRevision(
            f"{name} could be any of {len(found)} runs: {_listed(found)}", hint="give more of the run's name"
        )
    return refs.read(RUNS + found[0]) if found else None


def _missing(name: str, refs: Refs, checkpoints: Path) -> str:
    import difflib

    names = [HEAD, *refs.names(HEADS), *refs.names(TAGS)]
    close = difflib.get_close_matches(name, names, n=1)
    if not close and re.fullmatch(r"[0-9a-fA-F]{5,64}", name):
        close = [entry[:12] for entry in _entries(checkpoints) if entry.startswith(name.lower()[:4])][:1]
    if re.fullmatch(r"[0-9a-f]{1,3}", name):
        raise NotFound(f"no branch or tag is called {name}", hint="the beginning of an id needs at least 4 digits")
    hint = (
        f"did you mean {close[0]}?"
        if close
        else "`llmos log --all` lists all checkpoints, `llmos branch` and `llmos tag` names"
    )
    raise NotFound(f"no checkpoint is called {name!r}", hint=hint)


def _step(start: str, kind: str, number: int, rev: str, parents: Parents) -> str:
    if kind == "^":
        return _parent(start, number, rev, parents) if number else start
    for _ in range(number):
        start = _parent(start, 1, rev, parents)
    return start


def _parent(child: str, number: int, rev: str, parents: Parents) -> str:
    known = parents(child)
    if number > len(known):
        which = "no parent" if not known else f"{len(known)} parent{'s' if len(known) > 1 else ''} only"
        raise NotFound(
            f"{rev} does not exist: {child[:12]} has {which}", hint="`llmos log` shows the line of ancestors"
        )
    return known[number - 1]


def _entries(checkpoints: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(checkpoints)]
    except FileNotFoundError:
        return []


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
