"""Repairing a remote: what is damaged or missing there is sent again, from what this workspace has and is still what its hash says.

Manifests and the like come first, for they say what is needed. A file is put as any upload is: it gets its name when all of it has
arrived and was compared, so that whoever reads meanwhile has the damaged one or the good one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from llmos_cli.core import signatures
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.remote import hostile, layout, sending
from llmos_cli.core.remote.parallel import Meter, in_parallel
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.remote.store import Heard, whole
from llmos_cli.core.remote.vouching import Vouching, superseded
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, NotFound
from llmos_cli.events import Emit, Note
from llmos_cli.operations.integrity.problem import Repaired
from llmos_cli.operations.integrity.remote_files import lost_moves, missing, refs_known, shown
from llmos_cli.operations.integrity.remote_objects import Contents
from llmos_cli.operations.integrity.remote_survey import Survey
from llmos_cli.operations.pipeline.cache import text_of
from llmos_cli.operations.pipeline.memory import Memory
from llmos_cli.operations.summary import SHORT

HERE = "this workspace"


def files(ws: Workspace, there: Remote, survey: Survey, emit: Emit) -> list[Repaired]:
    """All but objects: those that are listed and damaged, then refs, and checkpoints that are gone."""
    found = []
    for name, made in _texts(ws) if survey.damaged else ():
        if there.stored(name) in survey.damaged and (text := _made(made)) is not None:
            there.store.put(name, whole(text), lambda _: None)
            found.append(Repaired(shown(name), HERE))
    found += _runs(ws, there, survey)
    found += _rows(ws, there, survey)
    found += _moves(there, survey)
    return found + list(_missing(ws, there, survey, emit))


def _texts(ws: Workspace) -> Iterator[tuple[str, Callable[[], bytes | None]]]:
    """Names of small files that this workspace could make again, and how."""
    for each in ws.index.parents():
        for kind in (layout.checkpoint_name, layout.lineage_name):
            yield kind(each), partial(_manifest, ws, each)
        yield layout.seal_name(each), partial(_seal, ws, each)
        yield layout.loss_name(each), partial(_loss, ws, each)
        yield layout.signature_name(each), partial(_signature, ws, each)
    for each in ws.snapshots.ids():
        yield layout.snapshot_name(each), partial(_snapshot, ws, each)
    for path in (Memory(ws).folder / "results").glob("*.json"):
        yield layout.result_name(path.stem), partial(_result, ws, path.stem)


def _made(make: Callable[[], bytes | None]) -> bytes | None:
    """None where this workspace has none, or has a damaged one."""
    try:
        return make()
    except (Corrupt, NotFound, FileNotFoundError):
        return None


def _manifest(ws: Workspace, checkpoint: str) -> bytes:
    text = ws.manifest(checkpoint).text().encode()
    hostile.read_manifest(text, checkpoint)
    return text


def _seal(ws: Workspace, checkpoint: str) -> bytes:
    return ws.sealed.seal(checkpoint).text().encode()


def _loss(ws: Workspace, checkpoint: str) -> bytes | None:
    found = ws.lost.find(checkpoint)
    return found.text().encode() if found else None


def _signature(ws: Workspace, checkpoint: str) -> bytes | None:
    if not (bundle := signatures.read(ws.dot, checkpoint)):
        return None
    text = layout.text(Vouching(bundle, superseded(ws, checkpoint, bundle)).said(checkpoint))
    hostile.read_signature(text, checkpoint)
    return text


def _snapshot(ws: Workspace, snapshot: str) -> bytes:
    return ws.snapshots.read(snapshot).text().encode()


def _result(ws: Workspace, key: str) -> bytes | None:
    found = Memory(ws).result(key)
    return text_of(found) if found else None


def _runs(ws: Workspace, there: Remote, survey: Survey) -> Iterator[Repaired]:
    """With those of their files that are not there: a run may have got some since it was sent."""
    damaged = {name for name in survey.damaged if name.startswith(f"{layout.RUNS}/")}
    for record in ws.runs.list() if damaged else ():
        name = layout.run_name(record.id)
        if there.stored(name) in damaged and not record.alive and not sending.wrong_run(record):
            run = sending.sent_run(record, next((each for each in record.checkpoints if each in survey.parents), ""))
            for file, entry in run.tree.items():
                if there.store.size(layout.object_name(entry.sha256)) != entry.size:
                    _put(there, entry, record.path / file)
            sending.send_run(there, run)
            yield Repaired(shown(name), HERE)


def _rows(ws: Workspace, there: Remote, survey: Survey) -> Iterator[Repaired]:
    """Files of refs. The last one counts: it comes back if this workspace has seen where it was. One before it is history, and says from
    now on what the next one does."""
    seen = survey.seen
    for ref in sorted(refs_known(ws, survey)):
        row, values = there.stored(layout.ref_name(ref, 0)).rpartition("/")[0], survey.rows.get(ref, {})
        for number in range(1, max(survey.numbers.get(row, ()), default=0) + 1):
            later = [each for each in values if each > number]
            known = bool(later) or (seen.get(ref) in survey.parents and seen[ref] not in values.values())
            if number not in values and known:
                value = values[min(later)] if later else seen[ref]
                text = layout.text({"ref": ref, "value": value})
                there.store.put(layout.ref_name(ref, number), whole(text), lambda _: None)
                yield Repaired(layout.ref_name(ref, number), "the move after it" if later else "where it was seen last")


def _moves(there: Remote, survey: Survey) -> Iterator[Repaired]:
    """Only forward, as a push goes: somebody may have moved it since, knowing nothing of what was lost."""
    for before, value in lost_moves(there, survey):
        ahead = before.value is None or before.value in survey.line(value)
        if value in survey.parents and ahead and there.move(before, value):
            yield Repaired(layout.ref_name(before.ref, before.number + 1), "where it was seen last")


def _missing(ws: Workspace, there: Remote, survey: Survey, emit: Emit) -> Iterator[Repaired]:
    """Checkpoints of which there is not even a manifest, and what is missing of their lines, parents first."""
    line = {each for lost in missing(ws, there, survey) for each in survey.line(lost)} - survey.parents.keys()
    for each in sending.parents_first(ws, line & ws.index.parents().keys()):
        try:
            sent = sending.everything(ws, there, [each], {})
            if not sent.empty:
                sending.send(there, sent, emit)
                yield Repaired(f"checkpoints/{each[:SHORT]}.json", HERE)
        except (Corrupt, NotFound) as error:
            emit(Note(f"{each[:SHORT]} was not sent again: {error.message}", "warning"))


def objects(ws: Workspace, there: Remote, survey: Survey, contents: Contents, emit: Emit) -> list[Repaired]:
    """Hashed here before a byte is sent, and read again there afterwards."""
    wanted = set(contents.wrong)
    here = _places(ws, survey)
    if contents.unnamed:
        wanted |= {each for each in here if there.stored(layout.object_name(each)) in contents.unnamed}
    good = {each: found for each in sorted(wanted) if (found := _good(each, here.get(each, ())))}
    meter = Meter("push", sum(entry.size for entry, _ in good.values()), emit)
    in_parallel(lambda each: _put(there, *each, meter.heard), list(good.values()), meter)
    meter.end()
    contents.look([there.stored(layout.object_name(each)) for each in good], emit)
    return [Repaired(f"object {each[:SHORT]}", str(path.relative_to(ws.root))) for each, (_, path) in good.items()]


def _places(ws: Workspace, survey: Survey) -> dict[str, list[Path]]:
    """Where the bytes of objects may be in this workspace."""
    found: dict[str, list[Path]] = {}
    for sha256 in ws.objects.names():
        found.setdefault(sha256, []).append(ws.objects.path(sha256))
    for entry in ws.index.entries():
        try:
            tree = ws.manifest(entry.id).tree
        except Corrupt:
            continue
        for name, each in tree.items():
            found.setdefault(each.sha256, []).append(ws.checkpoints / entry.id / name)
    for named in survey.names():
        if named.here is not None:
            found.setdefault(named.entry.sha256, []).append(named.here)
    return found


def _good(sha256: str, places: Sequence[Path]) -> tuple[FileEntry, Path] | None:
    for path in places:
        if path.is_file() and not path.is_symlink() and (entry := hash_file(path)).sha256 == sha256:
            return entry, path
    return None


def _put(there: Remote, entry: FileEntry, path: Path, heard: Heard = lambda _: None) -> None:
    there.store.put(layout.object_name(entry.sha256), sending.content(path, entry), heard)
