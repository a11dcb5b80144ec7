"""The index: what the files say of checkpoints and runs, kept in SQLite so that `log` need not read thousands of them.

A cache and nothing else (`database.py` says what becomes of a damaged one). It compares the times of `checkpoints/` and
`runs/` with those it saw last, and reads only what is new.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos_cli.core import records
from llmos_cli.core.database import Database, write
from llmos_cli.core.listing import files, folders
from llmos_cli.core.lost import Lost
from llmos_cli.core.records import RunRecord
from llmos_cli.core.refs import ID
from llmos_cli.errors import Corrupt
from llmos_cli.events import Metric

if TYPE_CHECKING:
    from llmos_cli.core.manifest import Made, Manifest

_SCHEMA = 11
_TABLES = """
CREATE TABLE IF NOT EXISTS seen(folder TEXT PRIMARY KEY, mtime INTEGER);
CREATE TABLE IF NOT EXISTS checkpoints(id TEXT PRIMARY KEY, time TEXT, operation TEXT, label TEXT, parents TEXT, size INTEGER);
CREATE INDEX IF NOT EXISTS checkpoints_newest ON checkpoints(time DESC, id);
CREATE TABLE IF NOT EXISTS held(id TEXT, sha256 TEXT, PRIMARY KEY (id, sha256)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unreadable(id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lost(id TEXT PRIMARY KEY, hole INTEGER) WITHOUT ROWID;
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
CREATE TABLE IF NOT EXISTS saved(checkpoint TEXT, run TEXT, at REAL, stored INTEGER, PRIMARY KEY (checkpoint, run));
"""
_SETTLED = 2.0
"""A folder changed less than this many seconds ago may change again within one tick of its clock: not to be trusted yet."""

_LINE = """
WITH RECURSIVE line(id) AS (SELECT value FROM json_each(?)
    UNION SELECT parent.value FROM line JOIN checkpoints USING (id), json_each(checkpoints.parents) AS parent)
SELECT id FROM line
"""
_NEWEST = "SELECT * FROM checkpoints WHERE id NOT IN (SELECT id FROM lost WHERE hole) ORDER BY time DESC, id LIMIT ?"
_HELD = "SELECT sha256 FROM held WHERE id NOT IN (SELECT value FROM json_each(?))"
_HOLDERS = "SELECT sha256, COUNT(*) FROM held WHERE id NOT IN (SELECT value FROM json_each(?)) GROUP BY sha256"
_HAVING = "SELECT DISTINCT id FROM held WHERE sha256 IN (SELECT value FROM json_each(?))"

_RUNS_OF = "SELECT DISTINCT run FROM json_each(?) AS line JOIN used ON used.checkpoint = line.value"


class Entry(NamedTuple):
    """A checkpoint in a list. `label` says in a word how the operation was told to work; `size` in bytes."""

    id: str
    time: str
    operation: str
    label: str
    parents: tuple[str, ...]
    size: int

    @property
    def is_lost(self) -> bool:
        """It was given up: this stands for a manifest that nobody has."""
        return not self.time and self.operation == LOST


LOST = "lost"


class Index:
    def __init__(self, root: Path, dot: Path) -> None:
        self._checkpoints = root / "checkpoints"
        self._runs = root / "runs"
        self._locks = dot / "locks"
        self._lost = Lost(dot)
        self._dot = dot
        self._database = Database(dot / "index.sqlite", _TABLES, _SCHEMA)
        self._still = False
        self._fresh: sqlite3.Connection | None = None

    # What is asked

    def entry(self, checkpoint: str) -> Entry | None:
        rows = self._ask("SELECT * FROM checkpoints WHERE id = ?", checkpoint)
        if not rows and self._still:  # a ref that was read since may name what has come since
            self._fresh = None
            rows = self._ask("SELECT * FROM checkpoints WHERE id = ?", checkpoint)
        return _entry(rows[0]) if rows else None

    def entries(self, limit: int = -1) -> list[Entry]:
        """The newest checkpoints first."""
        return [_entry(row) for row in self._ask(_NEWEST, limit)]

    def line(self, checkpoints: Iterable[str]) -> set[str]:
        """These checkpoints and all their ancestors; those that are missing are named too."""
        return {row[0] for row in self._ask(_LINE, json.dumps(list(checkpoints)))}

    def parents(self) -> dict[str, str]:
        """Of all checkpoints whose manifests can be read, or that were given up, as JSON: `ancestry.walk` through them takes half of the time that `_LINE` does."""
        return dict(self._ask("SELECT id, parents FROM checkpoints"))

    def unreadable(self) -> set[str]:
        """Checkpoints that are there and whose manifests cannot be read, but for those that were given up."""
        return {
            row[0] for row in self._ask("SELECT id FROM unreadable WHERE id NOT IN (SELECT id FROM lost WHERE hole)")
        }

    def lost(self) -> set[str]:
        """Checkpoints that were given up, and that nobody brought back since: of those whose weights alone were, none."""
        return {checkpoint for (checkpoint,) in self._ask("SELECT id FROM lost WHERE hole")}

    def held(self, without: Iterable[str] = ()) -> set[str]:
        """SHA-256 of the files of all checkpoints but those `without`."""
        return {sha256 for (sha256,) in self._ask(_HELD, json.dumps(list(without)))}

    def holders(self, without: Iterable[str] = ()) -> dict[str, int]:
        """SHA-256 -> in how many checkpoints, but for those `without`, a file with this content is."""
        return dict(self._ask(_HOLDERS, json.dumps(list(without))))

    def having(self, sha256s: Iterable[str]) -> set[str]:
        """Checkpoints with a file of one of these contents, whether it is there or not."""
        return {row[0] for row in self._ask(_HAVING, json.dumps(list(sha256s)))}

    def metrics(self, checkpoint: str) -> dict[tuple[str, str], Metric]:
        rows = self._ask("SELECT event FROM metrics WHERE checkpoint = ? ORDER BY at", checkpoint)
        found = [_metric(json.loads(event)) for (event,) in rows]
        return {(metric.name, metric.split): metric for metric in found}

    def records(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return [self._record(*row) for row in self._ask("SELECT id, record FROM runs ORDER BY started, id")]

    def open_records(self) -> list[RunRecord]:
        """Runs that have not said how they ended: alive, or died."""
        return [self._record(*row) for row in self._ask("SELECT id, record FROM runs WHERE open ORDER BY started, id")]

    def undone_records(self) -> list[RunRecord]:
        """Runs that are not done, among them all that can be resumed; oldest first."""
        return [
            self._record(*row) for row in self._ask("SELECT id, record FROM runs WHERE NOT done ORDER BY started, id")
        ]

    def record(self, run: str) -> RunRecord | None:
        rows = self._ask("SELECT id, record FROM runs WHERE id = ?", run)
        return self._record(*rows[0]) if rows else None

    def runs_of(self, checkpoints: Iterable[str]) -> set[str]:
        """Ids of the runs that committed one of these checkpoints or looked at one."""
        return {row[0] for row in self._ask(_RUNS_OF, json.dumps(list(checkpoints)))}

    def runs_named(self, operation: str) -> set[str]:
        """Ids of all runs of an operation."""
        return {run for (run,) in self._ask("SELECT id FROM runs WHERE operation = ?", operation)}

    def last_run(self, operation: str) -> RunRecord | None:
        rows = self._ask("SELECT id, record FROM runs WHERE operation = ? ORDER BY started DESC, id LIMIT 1", operation)
        return self._record(*rows[0]) if rows else None

    def makers(self, checkpoint: str) -> list[tuple[str, int]]:
        """Runs that committed this very checkpoint, and the bytes that were new on disk then; oldest first."""
        return [
            (run, stored)
            for run, stored in self._ask("SELECT run, stored FROM saved WHERE checkpoint = ? ORDER BY at", checkpoint)
        ]

    def file_times(self, checkpoint: str) -> dict[str, int]:
        """Modification times (ns) of a checkpoint's files when they were last known to be good."""
        rows = self._ask("SELECT times FROM files WHERE id = ?", checkpoint)
        return json.loads(rows[0][0]) if rows else {}

    def note_file_times(self, checkpoint: str, times: dict[str, int]) -> None:
        self.note_all_file_times({checkpoint: times})

    def note_all_file_times(self, times: Mapping[str, dict[str, int]]) -> None:
        """Of many checkpoints in one transaction: each costs a disk several syncs."""
        rows = [(checkpoint, json.dumps(each)) for checkpoint, each in times.items()]
        self._database.do(lambda db: write(db, "INSERT OR REPLACE INTO files VALUES (?, ?)", rows))

    def _record(self, run: str, text: str) -> RunRecord:
        value = json.loads(text)
        for key in ("checkpoints", "argv", "parents"):
            value[key] = tuple(value[key])
        return RunRecord(id=run, path=self._runs / run, **value).judged()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Many questions about one moment: inside the block the files are looked at once."""
        self._database.do(self._refresh)
        self._still = True
        try:
            yield
        finally:
            self._still = False
        self._fresh = None

    def _ask(self, query: str, *values: Any) -> list[Any]:
        def ask(db: sqlite3.Connection) -> list[Any]:
            if not (self._still and self._fresh is db):
                self._refresh(db)
            return db.execute(query, values).fetchall()

        return self._database.do(ask)

    def agrees(self) -> bool:
        """Whether it says what the files say. Where it does not, it is made anew."""
        anew = Index(self._checkpoints.parent, self._dot)
        anew._database.live_in_memory()
        if self._all() == anew._all():
            return True
        self._database.begin_anew()
        return False

    def _all(self) -> list[list[Any]]:
        """What can be read off the files again, but for runs that are being written."""
        alive = {record.id for record in self.open_records() if record.alive}
        runs = [
            row
            for row in self._ask("SELECT id, operation, started, record FROM runs ORDER BY id")
            if row[0] not in alive
        ]
        metrics = [row for row in self._ask("SELECT * FROM metrics ORDER BY 1, 2, 3, 4") if row[0] not in alive]
        saved = [row for row in self._ask("SELECT * FROM saved ORDER BY 1, 2") if row[1] not in alive]
        used = [row for row in self._ask("SELECT * FROM used ORDER BY 1, 2") if row[1] not in alive]
        held = self._ask("SELECT * FROM held ORDER BY id, sha256")
        return [self._ask("SELECT * FROM checkpoints ORDER BY id"), held, runs, metrics, saved, used]

    # How it keeps up

    def _refresh(self, db: sqlite3.Connection) -> None:
        if not self._refresh_folder(db, "checkpoints", self._checkpoints, self._read_checkpoints):
            self._read_manifests(db, {name for (name,) in db.execute("SELECT id FROM unreadable")})
        self._read_lost(db)
        fresh = self._refresh_folder(db, "runs", self._runs, self._read_runs)
        if not fresh:
            self._read_some_runs(db, [run for (run,) in db.execute("SELECT id FROM runs WHERE open")])
        self._fresh = db

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
        known = {
            identifier
            for (identifier,) in db.execute(
                "SELECT id FROM checkpoints WHERE id NOT IN (SELECT id FROM lost WHERE hole)"
            )
        }
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
        unended = {run for (run,) in db.execute("SELECT id FROM runs WHERE open")}
        self._read_some_runs(db, sorted(present - known | present & (unended | self._resumed())))

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
        before = self._record(run, text) if text else RunRecord(run, self._runs / run)
        # Whether the process lives is judged on reading, not stored.
        before = replace(before, status="running") if before.status == "died" and before.pid else before
        events, consumed = records.read_events(self._runs / run / records.EVENTS, consumed)
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


_UNKNOWN = "what it came from is not known"


def _row(name: str, found: Manifest) -> tuple[Any, ...]:
    made = found.made
    return name, made.time, made.operation, _label(made), json.dumps(made.parents), found.size


def _entry(row: tuple[Any, ...]) -> Entry:
    identifier, time_, operation, label, parents, size = row
    return Entry(identifier, time_, operation, label, tuple(json.loads(parents)), size)


def _metric(event: dict[str, Any]) -> Metric:
    known = ("name", "value", "split", "step", "checkpoint", "low", "high", "at")
    return Metric(**{key: event[key] for key in known if key in event})


def _stored(record: RunRecord) -> str:
    # Not `asdict`, which copies all that is in it: half of what reading a run would take.
    return json.dumps({name: value for name, value in vars(record).items() if name not in ("id", "path")})


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
