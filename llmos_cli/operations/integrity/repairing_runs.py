"""Repairing what runs have: what they were given stands in `configs/`, in other runs and on remotes, by its hash; what they wrote is on the
remotes that they were sent to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmos_cli.core import aside, atomic, kept
from llmos_cli.core.endings import altered, ends
from llmos_cli.core.ledger import Entry
from llmos_cli.core.listing import folders
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.records import EVENTS
from llmos_cli.core.refs import RUNS
from llmos_cli.core.remote import arriving, downloading, hostile, receiving
from llmos_cli.core.remote.remote import Remote
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import Corrupt, LlmosError
from llmos_cli.events import Emit, Note
from llmos_cli.operations import remote as remotes
from llmos_cli.operations.integrity.problem import Problem, Repaired
from llmos_cli.operations.integrity.refs import is_gone
from llmos_cli.operations.integrity.runs import lost_runs

Copy = Callable[[FileEntry, Path], str | None]


def repaired(ws: Workspace, problems: Sequence[Problem], elsewhere: Copy) -> Iterator[Repaired]:
    """`elsewhere` copies what has that hash to a path, and says where it was, or None."""
    for each in problems:
        run, where = ws.root / "runs" / each.run, ws.root / each.where
        said = kept.expected(run).get(where.relative_to(run).as_posix(), ()) if each.run else ()
        for entry in [entry for entry in reversed(said) if entry is not None][:1]:
            with ws.stage() as staged:
                if source := _here(ws, where.name, entry, staged / "good") or elsewhere(entry, staged / "good"):
                    atomic.write_bytes(where, (staged / "good").read_bytes(), scratch=ws.dot / "tmp")
                    yield Repaired(each.where, source)


def repaired_events(
    ws: Workspace, problems: Sequence[Problem], elsewhere: Copy, places: Sequence[Remote]
) -> Iterator[Repaired]:
    """What is here is set aside first: of a run that went on since it was sent, a remote has less."""
    runs = ws.root / "runs"
    damaged = {each.run for each in problems if each.where == f"runs/{each.run}/{EVENTS}"}
    alive = {each.id for each in ws.runs.alive()}
    for run in sorted((damaged | {each for each in folders(runs) if not (runs / each / EVENTS).exists()}) - alive):
        where = runs / run / EVENTS
        for said in filter(None, (_sent(there, run) for there in places)):
            with ws.stage() as staged:
                source = elsewhere(said, staged / "good")
                if source and _is_as_long(staged / "good", where, ws.ledger.find(run)):
                    aside.keep(ws.dot, where)
                    atomic.write_bytes(where, (staged / "good").read_bytes(), scratch=ws.dot / "tmp")
                    yield Repaired(f"runs/{run}/{EVENTS}", source)
                    break


def repaired_ledger(ws: Workspace) -> Iterator[Repaired]:
    if ws.ledger.damaged():
        ws.ledger.repair()
        yield Repaired(f"{DOT}/{ws.ledger.path.name}", "the lines of it that nobody edited")


def brought_back(
    ws: Workspace, problems: Sequence[Problem], places: Sequence[Remote], emit: Emit
) -> Iterator[Repaired]:
    """Runs that have a ref or a line of the ledger and no folder, with all that they wrote."""
    refs = (each.where for each in problems if each.where.startswith(RUNS))
    gone = {run for ref in refs if is_gone(ws, run := ref.removeprefix(RUNS))} | set(lost_runs(ws))
    for there in places if gone else ():
        try:
            yield from _fetched(ws, there, gone, emit)
        except LlmosError as error:
            emit(Note(f"runs that are missing did not come from {there.name}: {error.message}", "warning"))
        gone -= set(folders(ws.root / "runs"))


def forgotten(ws: Workspace) -> Iterator[Repaired]:
    """Runs that nobody has any more: that their checkpoints are not judged by them is all that is left to say."""
    if gone := lost_runs(ws):
        ws.ledger.forget(gone)
        for run in gone:
            yield Repaired(
                f"{DOT}/{ws.ledger.path.name}", f"the runs that are here: {run} is not, and its line was taken away"
            )


def _fetched(ws: Workspace, there: Remote, gone: set[str], emit: Emit) -> list[Repaired]:
    with remotes.fetching(ws, remotes.named(ws, there.name)):
        coming = receiving.runs_alone(ws, there, gone)
        downloading.receive(ws, there, coming, emit)
        with arriving.staged(ws, coming):
            arriving.publish_runs(ws, coming)
    return [Repaired(f"runs/{each.id}", there.name) for each in coming.runs]


def _sent(there: Remote, run: str) -> FileEntry | None:
    """The events of a run as a remote lists them; none where what it says of the run is not believed."""
    try:
        return there.files_of_run(run).get(EVENTS) if there.has_run(run) else None
    except Corrupt:
        return None


def _is_as_long(good: Path, where: Path, said: Entry | None) -> bool:
    """Sound, what the ledger has `said` of them, and the events of a run that ended as often as the one that is here, or oftener."""
    text = good.read_bytes()
    sound = not altered(text) and hostile.wrong_events(good) is None and (said is None or said.fits(text))
    return sound and (not where.exists() or ends(text) >= ends(where.read_bytes()))


def _here(ws: Workspace, name: str, entry: FileEntry, target: Path) -> str | None:
    """Runs are given the same again and again."""
    runs = ws.root / "runs"
    own = [runs / each / kept.CONFIG for each in folders(runs)] if name == kept.CONFIG else []
    for path in [ws.configs / name, *own, *(runs / each / kept.CONFIGS / name for each in folders(runs))]:
        if path.is_file() and path.stat().st_size == entry.size and hash_file(path) == entry:
            target.write_bytes(path.read_bytes())
            return path.relative_to(ws.root).as_posix()
    return None
