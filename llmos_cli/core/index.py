"""The index: what the files say of checkpoints and runs, kept in SQLite so that `log` need not read thousands of them.

A cache and nothing else: `database.py` says what becomes of a damaged one, `indexing.py` how it keeps up with the files.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmos_cli.core.database import Database, write
from llmos_cli.core.indexing import LOST, SCHEMA, TABLES, Indexing, run_record
from llmos_cli.core.records import RunRecord
from llmos_cli.events import Metric

_LINE = """
WITH RECURSIVE line(id) AS (SELECT value FROM json_each(?)
    UNION SELECT parent.value FROM line JOIN checkpoints USING (id), json_each(checkpoints.parents) AS parent)
SELECT id FROM line
"""
_NEWEST = "SELECT * FROM checkpoints WHERE id NOT IN holes ORDER BY time DESC, id LIMIT ?"
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


class Index:
    def __init__(self, root: Path, dot: Path) -> None:
        self._root = root
        self._dot = dot
        self._indexing = Indexing(root, dot)
        self._database = Database(dot / "index.sqlite", TABLES, SCHEMA)
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
        return {row[0] for row in self._ask("SELECT id FROM unreadable WHERE id NOT IN holes")}

    def lost(self) -> set[str]:
        """Checkpoints that were given up, and that nobody brought back since: of those whose weights alone were, none."""
        return {checkpoint for (checkpoint,) in self._ask("SELECT id FROM holes")}

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

    def own_metrics(self, checkpoint: str) -> dict[tuple[str, str], Metric]:
        """Only what the run that made it measured."""
        rows = self._ask(
            "SELECT event FROM metrics JOIN saved USING (checkpoint, run) WHERE checkpoint = ?", checkpoint
        )
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

    def gone_runs(self) -> list[str]:
        """Ids of runs whose folders were here, or should be by their refs, and are not."""
        return [run for (run,) in self._ask("SELECT run FROM gone ORDER BY run")]

    def runs_named(self, operation: str) -> set[str]:
        """Ids of all runs of an operation."""
        return {run for (run,) in self._ask("SELECT id FROM runs WHERE operation = ?", operation)}

    def last_run(self, operation: str, *, done: bool = False) -> RunRecord | None:
        """`done`: the last that ended well."""
        wanted = "operation = ? AND done" if done else "operation = ?"
        rows = self._ask(f"SELECT id, record FROM runs WHERE {wanted} ORDER BY started DESC, id LIMIT 1", operation)
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

    def _refresh(self, db: sqlite3.Connection) -> None:
        self._indexing.refresh(db)
        self._fresh = db

    def _record(self, run: str, text: str) -> RunRecord:
        return run_record(self._root / "runs", run, text)

    def agrees(self) -> bool:
        """Whether it says what the files say. Where it does not, it is made anew."""
        anew = Index(self._root, self._dot)
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


def _entry(row: tuple[Any, ...]) -> Entry:
    identifier, time_, operation, label, parents, size = row
    return Entry(identifier, time_, operation, label, tuple(json.loads(parents)), size)


def _metric(event: dict[str, Any]) -> Metric:
    known = ("name", "value", "split", "step", "checkpoint", "low", "high", "samples", "at")
    return Metric(**{key: event[key] for key in known if key in event})
