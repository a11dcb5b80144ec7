"""What is damaged or missing at a remote but for its objects: manifests, seals, runs, refs, backups and the like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from llmos_cli.core import signatures
from llmos_cli.core.refs import HEADS, TAGS
from llmos_cli.core.remote import hostile, layout
from llmos_cli.core.remote.remote import Remote, RemoteRef
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.problem import Problem
from llmos_cli.operations.integrity.remote_survey import Survey, called
from llmos_cli.operations.summary import SHORT

_LONG = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b|\b([0-9a-f]{2}/[0-9a-f]{10})[0-9a-f]{52}\b")

_MANIFESTS = tuple(f"{kind}/" for kind in (layout.CHECKPOINTS, layout.LINEAGE, layout.LOST))


@dataclass(frozen=True)
class Known:
    """Of a file whose name may be hidden: what it is called, and which checkpoint or ref (else empty) it is of."""

    name: str
    checkpoint: str = ""
    ref: str = ""


def problems(ws: Workspace, there: Remote, survey: Survey) -> Iterator[Problem]:
    known = known_files(ws, there, survey)
    for name, what in sorted(survey.damaged.items()):
        each = known.get(name, Known(name))
        yield Problem(shown(each.name), what, each.checkpoint, hurts=_hurts(there, survey, name, each))
    for name in gaps(survey):
        where = shown(known.get(name, Known(name)).name)
        yield Problem(where, "is missing: refs are moved by adding a file, and none is ever taken away")
    for move, value in lost_moves(there, survey):
        where = layout.ref_name(move.ref, move.number + 1)
        what = f"is missing: it was at {value[:SHORT]} when this workspace last heard of it"
        yield Problem(where, what, value, hurts=(called(there, move.ref),))
    for checkpoint, who in missing(ws, there, survey).items():
        what = f"is missing, and {who} names it"
        yield Problem(
            f"checkpoints/{checkpoint[:SHORT]}.json",
            what,
            checkpoint,
            hurts=survey.hurts([checkpoint]),
            lacks=checkpoint,
        )
    for checkpoint, bundle in survey.signatures.items():
        found = survey.manifest(checkpoint)
        if found and not signatures.parse(bundle, "it").is_of(found.text().encode()):
            where = layout.signature_name(checkpoint)
            what = "is the signature of another checkpoint: take that file away there, or sign it, and --repair sends yours"
            yield Problem(shown(where), what, checkpoint)


def shown(name: str) -> str:
    """With hashes of 12 digits."""
    return _LONG.sub(lambda found: found[1] or found[2], name)


def known_files(ws: Workspace, there: Remote, survey: Survey) -> dict[str, Known]:
    """Those that may be meant by a damaged name, or by a gap, as they are listed."""
    lost = list(gaps(survey))
    if not (survey.damaged or lost):
        return {}
    ids = {*ws.index.parents(), *survey.parents, *named_checkpoints(there, survey)}
    kinds = (layout.checkpoint_name, layout.lineage_name, layout.seal_name, layout.loss_name, layout.signature_name)
    names = [Known(kind(each), each) for each in ids for kind in kinds]
    names += [Known(layout.run_name(record.id)) for record in ws.runs.list()]
    for ref in refs_known(ws, survey):
        numbers = survey.numbers.get(there.stored(layout.ref_name(ref, 0)).rpartition("/")[0], ())
        names += [Known(layout.ref_name(ref, each), ref=ref) for each in range(1, max(numbers, default=0) + 1)]
    return {there.stored(each.name): each for each in names}


def _hurts(there: Remote, survey: Survey, name: str, known: Known) -> tuple[str, ...]:
    """Of a ref only the last move counts."""
    row, _, number = name.rpartition("/")
    if known.ref:
        return (called(there, known.ref),) if int(number) == max(survey.numbers[row]) else ()
    backup = number.removesuffix(".json") if row == layout.BACKUPS else ""
    return survey.hurts([known.checkpoint], [backup[:SHORT] if hostile.is_id(backup) else backup] if backup else [])


def refs_known(ws: Workspace, survey: Survey) -> set[str]:
    here = {prefix + name for prefix in (HEADS, TAGS) for name in ws.refs.under(prefix)}
    return here | survey.rows.keys() | survey.seen.keys()


def gaps(survey: Survey) -> Iterator[str]:
    """Numbers that are not there, of rows that go on."""
    for row, numbers in sorted(survey.numbers.items()):
        yield from (f"{row}/{each:08d}" for each in range(1, max(numbers)) if each not in numbers)


def lost_moves(there: Remote, survey: Survey) -> Iterator[tuple[RemoteRef, str]]:
    """Refs that were seen where no file of a sound row has them, nor its line has that: as they are, and where they were."""
    torn = {name.rpartition("/")[0] for name in (*survey.damaged, *gaps(survey))}
    for ref, value in sorted(survey.seen.items()):
        row = survey.rows.get(ref, {})
        now = row[max(row)] if row else None
        sound = there.stored(layout.ref_name(ref, 0)).rpartition("/")[0] not in torn
        if sound and value not in row.values() and not (now and value in survey.line(now)):
            yield RemoteRef(ref, max(row, default=0), now), value


def named_checkpoints(there: Remote, survey: Survey) -> dict[str, str]:
    """Those that must be there, and who says so."""
    found = {parent: f"its child {each[:SHORT]}" for each, parents in survey.parents.items() for parent in parents}
    found |= dict.fromkeys(survey.seals, "its seal")
    found |= {each: f"backup {name}" for name, backup in survey.backups.items() for each in backup.checkpoints}
    return found | {value: called(there, ref) for ref, value in survey.tips.items()}


def missing(ws: Workspace, there: Remote, survey: Survey) -> dict[str, str]:
    """Checkpoints that something names, and of which there is no manifest, not even a damaged one; and who names them."""
    whose = known_files(ws, there, survey)
    manifests = [name for name in survey.damaged if name.startswith(_MANIFESTS)]
    known = survey.parents.keys() | {whose[name].checkpoint for name in manifests if name in whose}
    return {each: who for each, who in named_checkpoints(there, survey).items() if each not in known}
