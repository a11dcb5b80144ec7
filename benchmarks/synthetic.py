"""A workspace with thousands of checkpoints and runs, written straight to disk in the documented format.

Checkpoints hold two small files, one of them the same in all; each was made by a run and moved a branch by an operation. Further
runs measured them. `main` has ten checkpoints whatever the size, so that what grows is the workspace and not the question. Further operations
moved a tag between its first and its last one, and are in the audit log.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import cycle, islice, pairwise
from pathlib import Path

from llmos_cli.core import journal, manifest
from llmos_cli.core.audit import NOTHING, Author, Head, Record, digest
from llmos_cli.core.hashed import place
from llmos_cli.core.manifest import FileEntry, Made, Manifest
from llmos_cli.core.operation import Change, Operation, written
from llmos_cli.core.records import EVENTS
from llmos_cli.core.refs import HEADS, RUNS, TAGS
from llmos_cli.events import Ended, Event, Metric, Saved, Started

LLMOS = Path(sys.executable).parent / "llmos"
LINE = 10
"""Checkpoints of `main`."""
BRANCHES = 9
"""Other lines, between which the rest of the checkpoints is shared out."""
YEAR = 365 * 86400.0
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


def make(root: Path, *, checkpoints: int, runs: int, moves: int = 0) -> Path:
    """`runs` in all, those that made the checkpoints among them; spread evenly over a year that ended an hour ago. `moves` of a tag, one a
    millisecond since."""
    subprocess.run([LLMOS, "init", root, "-q"], check=True, stdout=subprocess.DEVNULL)
    (root / ".llmos" / "storage").write_text("hardlink\n")
    ended = time.time() - 3600
    times = [ended - YEAR + YEAR * (number + 1) / runs for number in range(runs)]
    each = max(runs // checkpoints, 1)
    log, tips, main = [], dict[str, Manifest](), list[str]()
    for number in range(checkpoints):
        branch = _branch(number, checkpoints)
        before = tips.get(branch)
        at = times[number * each]
        tips[branch] = made = _checkpoint(root, number, before, at)
        main += [made.id] if branch == "main" else []
        run = _run(root, number * each, "train", at, [Saved(made.id, branch, made.size, made.size, at=at)])
        _ref(root, RUNS + run, made.id)
        change = Change(HEADS + branch, before.id if before else None, made.id)
        log.append(written(Operation(f"{number:08x}", f"train on {branch}", (change,), at, run)))
        for other in range(number * each + 1, (number + 1) * each):
            _run(root, other, "eval", times[other], [_metric(made, times[other])], (made.id,))
    for branch, tip in tips.items():
        _ref(root, HEADS + branch, tip.id)
    log += _moves(root, moves, main[0], main[-1], ended)
    (root / ".llmos" / "operations.jsonl").write_text("".join(log))
    for folder in ("checkpoints", "runs"):
        os.utime(root / folder, (ended, ended))
    return root


def _branch(number: int, checkpoints: int) -> str:
    """The last ones are those of `main`."""
    return "main" if number >= checkpoints - LINE else f"line-{number % BRANCHES}"


def _checkpoint(root: Path, number: int, parent: Manifest | None, at: float) -> Manifest:
    weights = f"the weights of {number}\n".encode() * 20
    contents = {"config.json": CONFIG, "model.safetensors": weights}
    tree = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()}
    config = {"train": {"max_steps": number}, "model": {"arch": "llama"}}
    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(at))
    parents = (parent.id,) if parent else ()
    made = manifest.manifest(tree, Made("train", parents, config, {}, {}, 0, when))
    folder = root / "checkpoints" / made.id
    folder.mkdir()
    for name, data in contents.items():
        os.link(_object(root, tree[name].sha256, data), folder / name)
    _write(folder / manifest.NAME, made.text().encode())
    return made


def _object(root: Path, sha256: str, data: bytes) -> Path:
    path = root / ".llmos" / "objects" / place(sha256)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
    return path


def _metric(made: Manifest, at: float) -> Metric:
    return Metric("bits_per_byte", 2 + (at % 1), "test", checkpoint=made.id, at=at)


def _run(root: Path, number: int, operation: str, at: float, said: list[Event], parents: tuple[str, ...] = ()) -> str:
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(at))}-{operation}-{number:06x}"
    folder = root / "runs" / name
    folder.mkdir()
    started = Started(name, operation, 1, at, "elsewhere", "main", ("llmos", operation), "", parents, at=at)
    events = [started, *said, Ended("done", at=at)]
    _write(folder / EVENTS, "".join(map(journal.line, events)).encode())
    return name


def _moves(root: Path, count: int, first: str, last: str, since: float) -> list[str]:
    by = Author("somebody", "elsewhere", "llmos tag -f moved")
    moved = [None, *islice(cycle([first, last]), count)]
    made, records = list[str](), list[Record]()
    for number, (before, after) in enumerate(pairwise(moved), 1):
        change = Change(f"{TAGS}moved", before, after)
        made.append(
            written(Operation(f"{number:08x}{number:08x}", "tag moved", (change,), since + number / 1000, by=by))
        )
        follows = records[-1].hash if records else NOTHING
        records.append(_record(number, made[-1], follows, by, since + number / 1000))
    if records:
        _ref(root, f"{TAGS}moved", str(moved[-1]))
        end = Head(count, records[-1].hash, records[-1].operation, records[-1].operation)
        (root / ".llmos" / "audit.jsonl").write_bytes(b"".join(record.written() + b"\n" for record in records))
        (root / ".llmos" / "audit.head").write_text(json.dumps(asdict(end)) + "\n")
    return made


def _record(number: int, line: str, before: str, by: Author, at: float) -> Record:
    operation = f"{number:08x}{number:08x}"
    hashed = digest(line.strip().encode())
    return Record(number, at, by.user, by.host, "tag moved", by.command, operation, before, line=hashed).sealed()


def _ref(root: Path, name: str, checkpoint: str) -> None:
    path = root / ".llmos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(checkpoint + "\n")


def _write(path: Path, data: bytes) -> None:
    """Without the syncing of `core/atomic.py`, which would take a minute for each thousand."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
