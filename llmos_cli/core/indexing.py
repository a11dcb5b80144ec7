"""How the index keeps up with the files: it compares the times of `checkpoints/` and `runs/` with those it saw last, and reads only
what is new."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.core import records
from llmos_cli.core.database import write
from llmos_cli.core.listing import files, folders
from llmos_cli.core.lost import Lost
from llmos_cli.core.records import RunRecord
from llmos_cli.core.refs import ID, RUNS, Refs
from llmos_cli.errors import Corrupt, NotPlain

if TYPE_CHECKING:
    from llmos_cli.core.manifest import Made, Manifest

SCHEMA = 13
TABLES = """
CREATE TABLE IF NOT EXISTS seen(folder TEXT PRIMARY KEY, mtime INTEGER);
CREATE TABLE IF NOT EXISTS checkpoints(id TEXT PRIMARY KEY, time TEXT, operation TEXT, label TEXT, parents TEXT, size INTEGER);
CREATE INDEX IF NOT EXISTS checkpoints_newest ON checkpoints(time DESC, id);
CREATE TABLE IF NOT EXISTS held(id TEXT, sha256 TEXT, PRIMARY KEY (id, sha256)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unreadable(id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost(id TEXT PRIMARY KEY, hole INTEGER) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS holes(id) AS SELECT id FROM lost WHERE hole;
CREATE TABLE IF NOT EXISTS files(id TEXT PRIMARY KEY, times TEXT);
CREATE TABLE IF NOT EXISTS runs(id TEXT PRIMARY KEY, operation TEXT, started REAL, open INTEGER, consumed INTEGER, record TEXT,
                  done INTEGER);
CREATE INDEX IF NOT EXISTS runs_open ON runs(started, id) WHERE open;
CREATE INDEX IF NOT EXISTS runs_undone ON runs(started, id) WHERE NOT done;
CREATE INDEX IF NOT EXISTS runs_newest ON runs(operation, started DESC, id);
CREATE TABLE IF NOT EXISTS metrics(run TEXT, checkpoint TEXT, name TEXT, split TEXT, at REAL, event TEXT,
                     PRIMARY KEY (checkpoint, name, split, run));
CREATE TABLE IF NOT EXISTS used(checkpoint TEXT, run TEXT, PRIMARY KEY (checkpoint, run)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS used_by ON used(run);
CREATE TABLE IF NOT EXISTS gone(run TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS saved(checkpoint TEXT, run TEXT, at REAL, stored INTEGER, PRIMARY KEY (checkpoint, run));
"""
_SETTLED = 2.0
"""A folder changed less than this many seconds ago may change again within one tick of its clock: not to be trusted yet."""


LOST = "lost"
"""The operation of a row that stands for a checkpoint that was given up."""


class Indexing:
    def __init__(self, root: Path, dot: Path) -> None:
        self._checkpoints = root / "checkpoints"
        self._runs = root / "runs"
        self._locks = dot / "locks"
        self._lost = Lost(dot)
        self._refs = Refs(dot)

    def refresh(self, db: sqlite3.Connection) -> None:
        if not self._refresh_folder(db, "checkpoints", self._checkpoints, self._read_checkpoints):
            self._read_manifests(db, {name for (name,) in db.execute("SELECT id FROM unreadable")})
        self._read_lost(db)
        fresh = self._refresh_folder(db, "runs", self._runs, self._read_runs)
        if not fresh:
            self._read_some_runs(db, [run for (run,) in db.execute("SELECT id FROM runs WHERE open")])

    def _refresh_folder(
        self, db: sqlite3.Connection, name: str, folder: Path, read: Callable[[sqlite3.Connection, set[str]], None]
    ) -> bool:
        """Read a folder whose time has changed; whether it had."""
        mtime = _mtime(folder)
        row = db.execute("SELECT mtime FROM seen WHERE folder = ?", (name,)).fetchone()
        if row and mtime and row[0] == mtime:
            return False
        read(db, set(folders(folder)))
        settled = mtime if time.time() - mtime / 1e9 > _SETTLED else 0
        if row is None or row[0] != settled:
            write(db, "INSERT OR REPLACE INTO seen VALUES (?, ?)", [(name, settled)])
        return True

    def _read_checkpoints(self, db: sqlite3.Connection, names: set[str]) -> None:
        known = {identifier for (identifier,) in db.execute("SELECT id FROM checkpoints WHERE id NOT IN holes")}
        unread = {identifier for (identifier,) in db.execute("SELECT id FROM unreadable")}
        present = {name for name in names if ID.fullmatch(name)}
        self._read_manifests(db, present - known)
        for table in ("checkpoints", "held", "files", "unreadable", "lost"):
            write(db, f"DELETE FROM {table} WHERE id = ?", [(name,) for name in (known | unread) - present])

    def _read_manifests(self, db: sqlite3.Connection, names: set[str]) -> None:
        """Those that cannot be read are remembered and tried again: mending one changes no time of `checkpoints/`."""
        new = {name: found for name in sorted(names) if (found := self._manifest(name)) is not None}
        rows = [_row(name, found) for name, found in new.items()]
        held = [(name, sha256) for name, found in new.items() for sha256 in {e.sha256 for e in found.tree.values()}]
        unread = {name for (name,) in db.execute("SELECT id FROM unreadable")}
        lost = {name for (name,) in db.execute("SELECT id FROM lost")}
        write(db, "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", rows)
        write(db, "DELETE FROM lost WHERE id = ?", [(name,) for name in lost & new.keys()])
        write(db, "INSERT OR REPLACE INTO held VALUES (?, ?)", held)
        write(db, "DELETE FROM unreadable WHERE id = ?", [(name,) for name in unread & new.keys()])
        write(db, "INSERT INTO unreadable VALUES (?)", [(name,) for name in names - unread - new.keys()])

    def _read_lost(self, db: sqlite3.Connection) -> None:
        """A row for each checkpoint that was given up, where its manifest would have one. There are few marks, if any."""
        known, marks = dict(db.execute("SELECT id, hole FROM lost")), set(files(self._lost.directory))
        if known.keys() == marks:
            return
        new = {name: self._lost.find(name) if self._manifest(name) is None else None for name in marks - known.keys()}
        holes = {name: loss for name, loss in new.items() if loss is not None}
        gone = [(name,) for name in known.keys() - marks]
        rows = [
            (name, "", LOST, "" if loss.known else _UNKNOWN, json.dumps(loss.parents), 0)
            for name, loss in holes.items()
        ]
        write(db, "DELETE FROM checkpoints WHERE id = ?", [(name,) for (name,) in gone if known[name]])
        write(db, "DELETE FROM lost WHERE id = ?", gone)
        write(db, "DELETE FROM held WHERE id = ?", [(name,) for name in holes])
        write(db, "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", rows)
        write(db, "INSERT INTO lost VALUES (?, ?)", [(name, name in holes) for name in new])

    def _manifest(self, name: str) -> Manifest | None:
        from llmos_cli.core import manifest  # here: most of the time nothing is new

        try:
            found = manifest.read(self._checkpoints / name)
        except Corrupt:
            return None  # `fsck`, `gc` and whoever reads this checkpoint will tell
        return found if name not in self._lost or found.is_of(name) else None

    def _read_runs(self, db: sqlite3.Connection, present: set[str]) -> None:
        known = {run for (run,) in db.execute("SELECT id FROM runs")}
        for table, column in (("runs", "id"), ("metrics", "run"), ("saved", "run"), ("used", "run")):
            write(db, f"DELETE FROM {table} WHERE {column} = ?", [(run,) for run in known - present])
        self._note_gone(db, known, present)
        unended = {run for (run,) in db.execute("SELECT id FROM runs WHERE open")}
        self._read_some_runs(db, sorted(present - known | present & (unended | self._resumed())))

    def _note_gone(self, db: sqlite3.Connection, known: set[str], present: set[str]) -> None:
        """Runs whose folders are not there any more; whether they should be, their refs say, which only a new index looks through."""
        before = {run for (run,) in db.execute("SELECT run FROM gone")}
        now = (known or set(self._refs.names(RUNS))) - present
        write(db, "INSERT INTO gone VALUES (?)", [(run,) for run in now - before])
        write(db, "DELETE FROM gone WHERE run = ?", [(run,) for run in before & present])

    def _resumed(self) -> set[str]:
        """Runs that went on after they had ended: whoever resumes one takes its lock. Others that have ended are not looked at
        again, for a new run must not cost a look at each of a hundred thousand old ones."""
        return {name.removeprefix("run-") for name in files(self._locks) if name.startswith("run-")}

    def _read_some_runs(self, db: sqlite3.Connection, runs: Iterable[str]) -> None:
        """Read on in those event files that have grown."""
        for run in runs:
            row = db.execute("SELECT consumed, record FROM runs WHERE id = ?", (run,)).fetchone()
            length = _length(self._runs / run / records.EVENTS)
            if row is None or length != row[0]:
                self._read_run(db, run, *(row if row and length > row[0] else (0, None)))

    def _read_run(self, db: sqlite3.Connection, run: str, consumed: int, text: str | None) -> None:
        before = run_record(self._runs, run, text) if text else RunRecord(run, self._runs / run)
        # Whether the process lives is judged on reading, not stored.
        before = replace(before, status="running") if before.status == "died" and before.pid else before
        try:
            events, consumed = records.read_events(self._runs / run / records.EVENTS, consumed)
        except NotPlain:
            return  # `fsck` tells, and whoever reads this run
        if not (text or events):
            return  # no run: its folder appears with its first event
        after = records.fold(before, events)
        is_open = after.status in ("running", "died")
        write(
            db,
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(run, after.operation, after.started, is_open, consumed, _stored(after), after.status == "done")],
        )
        metrics = [event for event in events if event.get("event") == "metric" and event.get("checkpoint")]
        write(
            db,
            "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
            [(run, m["checkpoint"], m["name"], m.get("split", ""), m["at"], json.dumps(m)) for m in metrics],
        )
        used = {*after.parents, *after.checkpoints}
        write(db, "INSERT OR IGNORE INTO used VALUES (?, ?)", [(checkpoint, run) for checkpoint in sorted(used)])
        saved = [event for event in events if event.get("event") == "saved"]
        write(
            db,
            "INSERT OR IGNORE INTO saved VALUES (?, ?, ?, ?)",
            [(event["checkpoint"], run, event["at"], event.get("stored", 0)) for event in saved],
        )


def run_record(runs: Path, run: str, text: str) -> RunRecord:
    """A run whose folder is in `runs`, as `_stored` wrote it."""
    value = json.loads(text)
    for key in ("checkpoints", "argv", "parents"):
        value[key] = tuple(value[key])
    return RunRecord(id=run, path=runs / run, **value).judged()


def _stored(record: RunRecord) -> str:
    # Not `asdict`, which copies all that is in it: half of what reading a run would take.
    return json.dumps({name: value for name, value in vars(record).items() if name not in ("id", "path")})


_UNKNOWN = "what it came from is not known"


def _row(name: str, found: Manifest) -> tuple[Any, ...]:
    made = found.made
    return name, made.time, made.operation, _label(made), json.dumps(made.parents), found.size


TARGETS = ("size", "ratio", "latency", "kl")
"""What a compression may be asked for; the bits it may choose from are no description of its result."""


def _label(made: Made) -> str:
    """`wanda 0.5`, `gptq 4`, `llama`: the few values of the config that tell one checkpoint from the next."""
    section = made.config.get(made.operation)
    model = made.config.get("model")
    words: list[Any] = []
    if isinstance(section, dict):
        words += [section.get("method"), section.get("sparsity")]
        words += [section.get("pattern") if section.get("pattern") != "unstructured" else None]
        words += [f"to {kind} {value}" for kind in TARGETS if (value := section.get(f"target_{kind}")) is not None]
        words += [f"{section['bits']} bits" if isinstance(section.get("bits"), int) else None]
        words += [f"heal {section['heal']}" if section.get("heal") else None]
    if isinstance(model, dict):
        words.append(model.get("arch"))
    return " ".join(str(word) for word in words if word is not None)


def _mtime(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
