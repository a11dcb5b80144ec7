"""What a run keeps beside its events: its `kept` events have the hash of what it was given (`config.yaml`, and each file in `configs/`)
and of the `evaluation.json` that it wrote.

    {"event": "kept", ..., "files": {"config.yaml": {"sha256": HEX, "size": BYTES}, "configs/train.yaml": ...}}

The first stands beside `started`. A run that goes on with another config says so before that is written, and a kill may come between the two: what
the last event but one says of a file is as good. `null` stands for what somebody gave up; of `events.jsonl` that is all that is said. Runs of
before have none, and are as good.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llmos_cli.core import atomic
from llmos_cli.core.endings import EDITED as EDITED_EVENTS
from llmos_cli.core.endings import altered
from llmos_cli.core.listing import read_bytes
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.records import EVENTS, parse
from llmos_cli.errors import Corrupt
from llmos_cli.events import Kept

CONFIG, CONFIGS, EVALUATION = "config.yaml", "configs", "evaluation.json"
_NAME = re.compile(rf"{re.escape(CONFIG)}|{re.escape(EVALUATION)}|{CONFIGS}/(?!\.\.?$)[^/\0]+")
_SOME_EVENTS = f'"files": {{"{EVENTS}": null}}'.encode()
_EDITED, _GONE = "was edited: it is not what the run {}", "is missing, and the run {} it"
_ADDED = "is none of what the run was given"

Said = Mapping[str, Sequence[FileEntry | None]]


def write(run: Path, texts: Mapping[str, str]) -> Kept:
    """Write what a run is given, or found, into its folder, and return the event that says so."""
    for name, text in texts.items():
        atomic.write_text(run / name, text)
    return of(texts)


def of(texts: Mapping[str, str]) -> Kept:
    """The event that says of each name in a run's folder which text is there."""
    data = {name: text.encode() for name, text in texts.items()}
    return Kept({name: {"sha256": hashlib.sha256(each).hexdigest(), "size": len(each)} for name, each in data.items()})


def wrong(run: Path) -> Iterator[tuple[str, str]]:
    """Names of files that are not what the run was given or wrote, and how that is said."""
    there = hashed(run)
    return differing(_events(run), there)


def hashed(run: Path) -> Mapping[str, FileEntry]:
    """What is there of what a run may keep; to be asked before its events are read: who writes a file meanwhile has said so."""
    return {name: hash_file(run / name) for name in _names(run)}


def differing(events: bytes, there: Mapping[str, FileEntry]) -> Iterator[tuple[str, str]]:
    """As `wrong`, of events that were read already."""
    said = _said(events)
    for name in sorted({*said, *there} if said else ()):
        # An operating system's, as everywhere, and an evaluation of before there was a hash of it.
        is_ours = name in said or not (name == EVALUATION or name.startswith(f"{CONFIGS}/."))
        if is_ours and (what := _wrong(said.get(name, ()), there.get(name))):
            yield name, what.format("wrote" if name == EVALUATION else "was given")


def _wrong(said: Sequence[FileEntry | None], there: FileEntry | None) -> str:
    if not said:
        return _ADDED
    if there in said[-2:] or there in _before_given_up(said):
        return ""
    return _GONE if there is None else _EDITED


def _before_given_up(said: Sequence[FileEntry | None]) -> Sequence[FileEntry | None]:
    """What was given up, and may turn up again, is still what it was."""
    return [each for each in said if each is not None][-2:] if said[-1] is None else ()


def given_up(events: bytes, there: Mapping[str, FileEntry]) -> list[str]:
    """Names of files that somebody gave up and that have not turned up again."""
    said = {**_said(events), **({EVENTS: [None]} if _SOME_EVENTS in events else {})}
    return [name for name, each in sorted(said.items()) if each[-1] is None and there.get(name) not in each[:-1]]


def expected(run: Path) -> Said:
    """All that its events say of each name, oldest first; nothing of a run of before."""
    return _said(_events(run))


def _said(events: bytes) -> Said:
    found: dict[str, list[FileEntry | None]] = {}
    for line in events.split(b"\n"):
        # Hardly any line is one of these, and a long run has very many.
        event = parse(line) if b'"kept"' in line else None
        for name, entry in event["files"].items() if event and event["event"] == "kept" else ():
            if _NAME.fullmatch(name):
                found.setdefault(name, []).append(FileEntry(**entry) if entry else None)
    return found


def _events(run: Path) -> bytes:
    try:
        return read_bytes(run / EVENTS)
    except FileNotFoundError:
        raise Corrupt(f"runs/{run.name} has no {EVENTS}", hint="`llmos fsck` tells what else is affected") from None


def require(run: Path, name: str) -> Path:
    """Where it is; Corrupt where it is not what the run was given, or wrote."""
    _check(run, name)
    return run / name


def configs(run: Path) -> list[Path]:
    """The user's config files that a run was given and that are here; Corrupt where one is another, or gone and not given up."""
    _check(run, f"{CONFIGS}/")
    return [run / name for name in _names(run) if name.endswith(".yaml") and name.startswith(f"{CONFIGS}/")]


def _names(run: Path) -> list[str]:
    """Plain files, as `is_file` of `listing.py` has it; what a run was given may be called `.mine.yaml`."""
    paths = [run / CONFIG, run / EVALUATION, *sorted((run / CONFIGS).glob("*"))]
    return [path.relative_to(run).as_posix() for path in paths if path.is_file() and not path.is_symlink()]


def _check(run: Path, begins: str) -> None:
    """What its events say counts if they are what it wrote."""
    if altered(_events(run)):
        raise Corrupt(f"runs/{run.name}/{EVENTS} {EDITED_EVENTS}", hint="`llmos fsck` tells what else is affected")
    for name, what in wrong(run):
        if name.startswith(begins):
            hint = "`llmos fsck --repair` looks for what it was in other runs and on remotes"
            raise Corrupt(f"runs/{run.name}/{name} {what}", hint=hint)
