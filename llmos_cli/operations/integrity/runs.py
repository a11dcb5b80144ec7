"""What fsck says of runs: events that are not what the ledger, their own end or the run's ref says, and files beside them that are not what
the events say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmos_cli.core import kept, records
from llmos_cli.core.endings import EDITED, altered, not_json
from llmos_cli.core.ledger import Entry
from llmos_cli.core.listing import entries, folders, is_file, is_folder, read_bytes
from llmos_cli.core.refs import RUNS
from llmos_cli.core.view import short
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.operations.integrity.problem import GivenUpFile, Problem, more, readable
from llmos_cli.operations.integrity.refs import is_gone
from llmos_cli.operations.integrity.strangers import not_plain


def of_runs(ws: Workspace) -> Iterator[Problem | GivenUpFile]:
    """A line that a crash cut short at the end is no damage; one that makes no sense in the middle is."""
    ledger = ws.ledger.all()
    for run in _without_folder(ws, ledger):
        if readable(ws, RUNS + run) == (None, False):  # else it is told with its ref
            yield Problem(f"runs/{run}", "is missing, and the ledger says how it ended")
    for name in folders(ws.root / "runs"):
        events = (folder := ws.root / "runs" / name) / records.EVENTS
        strange = [Path(each.path) for each in entries(folder) if not (is_file(each) or is_folder(each))]
        yield from (not_plain(ws, path) for path in strange)
        if events not in strange:
            told = [Problem(f"runs/{name}", f"has no {records.EVENTS}")]
            yield from _of(ws, folder, ledger.get(name)) if events.is_file() else told
    if bad := ws.ledger.damaged():
        what = f"line {bad[0]} was edited{more(bad)}: nobody vouches for what its run measured; --repair takes it away"
        yield Problem(f"{DOT}/{ws.ledger.path.name}", what)


def lost_runs(ws: Workspace) -> list[str]:
    """Runs that ended here, or came from a remote, and whose folders are gone."""
    return _without_folder(ws, ws.ledger.all())


def _without_folder(ws: Workspace, ledger: Mapping[str, Entry]) -> list[str]:
    return [run for run in sorted(ledger.keys() - set(folders(ws.root / "runs"))) if is_gone(ws, run)]


def _of(ws: Workspace, folder: Path, said: Entry | None) -> Iterator[Problem | GivenUpFile]:
    given = kept.hashed(folder)
    text, where = read_bytes(folder / records.EVENTS), f"runs/{folder.name}"
    for what in wrong_events(ws, folder.name, text, said):
        yield Problem(f"{where}/{records.EVENTS}", what, run=folder.name)
    for file, what in kept.differing(text, given):
        yield Problem(f"{where}/{file}", what, run=folder.name)
    yield from (GivenUpFile(f"{where}/{file}") for file in kept.given_up(text, given))


def wrong_events(ws: Workspace, run: str, text: bytes, said: Entry | None) -> Iterator[str]:
    """What the ledger has `said` of them finds every change up to the end that they had. Without it they have their own ends to go by, that they
    must begin, and that a run which is done and has a ref says what it saved; one that was killed may not have lived to say that."""
    if altered(text) or (said is not None and not said.fits(text)):
        yield EDITED
    elif said is None:
        yield from _against_ref(ws, run, text)
    if bad := not_json(text):
        yield f"line {bad[0]} is not JSON{more(bad)}"


def begins(text: bytes) -> bool:
    return any(b'"started"' in line and _is_beginning(records.parse(line)) for line in text.split(b"\n"))


def _is_beginning(event: Mapping[str, Any] | None) -> bool:
    return event is not None and event["event"] == "started"


def _against_ref(ws: Workspace, run: str, text: bytes) -> Iterator[str]:
    found = [event for line in text.split(b"\n") if _decides(line) and (event := records.parse(line)) is not None]
    record = records.fold(records.RunRecord(run, Path()), found)
    committed, _ = readable(ws, RUNS + run)
    if not any(map(_is_beginning, found)):
        yield "do not say how the run began, which is the first that a run writes"
    elif committed is not None and record.status == "done" and not record.checkpoint:
        yield f"do not say that the run saved {short(committed)}, which {RUNS}{run} names"


def _decides(line: bytes) -> bool:
    """A long training writes little else than progress."""
    return b'"started"' in line or b'"saved"' in line or b'"ended"' in line
