"""How fast the workspace is and how its cost grows: against 1 GiB of plain writing and hashing, against one a thousand times smaller, and against DVC.

    python -m benchmarks.workspace [growth] [commit] [dvc] [--checkpoints 10000] [--runs 100000] [--mib 1024] [--turns 5]

Whole commands in processes of their own, which take turns within one run; the best turn of each counts. Ratios of CPU seconds (the command's
own and its children's) are held against the bars, wall seconds stand beside them; `commit` is held against its bar by wall seconds too, and
`fsck` by those alone, since hashing on several cores is what it is about. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.compress.venvs import FOLDER
from benchmarks.synthetic import LLMOS, make
from llmos_cli.core.manifest import Made
from llmos_cli.core.objects import cores
from llmos_cli.core.workspace import Workspace

PARTS = ("growth", "commit", "dvc")
BLOCKS = 16
K = TypeVar("K")
COMMANDS = {
    "status": ["status"],
    "log -n 20": ["log", "-n", "20"],
    "log --all -n 20": ["log", "--all", "-n", "20"],
    "show": ["show"],
    "tag NAME": ["tag", "-f", "now"],
}


@dataclass(frozen=True)
class Seconds:
    cpu: float
    wall: float


@dataclass(frozen=True)
class Row:
    """`bar`: what the ratio of `ours` to `other` may be at most."""

    name: str
    ours: Seconds
    against: str
    other: Seconds
    bar: float
    wall: bool = False

    @property
    def ratio(self) -> float:
        return self.ours.wall / self.other.wall if self.wall else self.ours.cpu / self.other.cpu

    @property
    def line(self) -> str:
        cells = [f"{self.name:30} {self._told(self.ours)}   {self.against:34} {self._told(self.other)}"]
        verdict = "" if self.ratio <= self.bar else "   MISSED"
        return f"{cells[0]}   {self.ratio:6.2f}x {'wall' if self.wall else 'CPU '} (bar {self.bar:g}x){verdict}"

    @staticmethod
    def _told(seconds: Seconds) -> str:
        return f"{seconds.cpu:7.3f} {seconds.wall:7.3f}"


def main() -> int:
    options = arguments()
    print(f"{'what':30} {'CPU s':>7} {'wall s':>7}   {'against':34} {'CPU s':>7} {'wall s':>7}   ratio")
    missed = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for part in options.parts or PARTS:
            for row in _PARTS[part](Path(scratch), options):
                print(row.line, flush=True)
                missed += row.ratio > row.bar
    print(f"{missed} bar{'s' if missed != 1 else ''} missed" if missed else "every bar is met")
    return 1 if missed else 0


def growth(scratch: Path, options: argparse.Namespace) -> list[Row]:
    """The same questions to a workspace of ten and to a large one; `gc` and `push` of nothing against `status` of the same."""
    small = make(scratch / "small", checkpoints=10, runs=10)
    large = make(scratch / "large", checkpoints=options.checkpoints, runs=options.runs)
    for place in (small, large):
        _llmos(place, "remote", "add", "origin", str(place) + "-remote")
        _llmos(place, "push")
    asked = {**COMMANDS, "gc": ["gc"], "push": ["push"]}
    turns = {(name, place.name): _command(place, *words) for name, words in asked.items() for place in (small, large)}
    took = best(turns, options.turns)
    rows = [Row(name, took[name, "large"], "with 10 / 10", took[name, "small"], 1.3) for name in COMMANDS]
    for name in ("gc", "push"):
        for size in ("small", "large"):
            rows.append(Row(f"{name}, nothing to do, {size}", took[name, size], "status", took["status", size], 2.0))
    print(f"-- with {options.checkpoints:,} / {options.runs:,} checkpoints / runs")
    return rows


def commit(scratch: Path, options: argparse.Namespace) -> list[Row]:
    """A checkpoint of `--mib`, against writing, syncing and hashing its bytes once; then the same with one of 16 blocks changed."""
    place = scratch / "commits"
    _llmos(scratch, "init", str(place), "-q")
    first, second, plain, fsck, hashed = [], [], [], [], []
    for turn in range(max(options.turns // 2, 1)):
        plain.append(timed(_self("write", scratch / "plain", options.mib, turn, turn)))
        shutil.rmtree(scratch / "plain")
        first.append(timed(_self("commit", place, options.mib, turn, turn)))
        second.append(timed(_self("commit", place, options.mib, turn, turn + 1)))
        stored = _newly_stored(place)
        print(
            f"-- second commit stored {stored / 2**20:.1f} MiB of {options.mib}, a block has {options.mib / BLOCKS:g}"
        )
        if stored > options.mib * 2**20 / BLOCKS + 2**16:
            raise SystemExit("more than the changed block was stored")
        hashed.append(timed(_hashing(place)))
        fsck.append(timed(_command(place, "fsck")))
    least = _least
    return [
        Row("commit", least(first), "write, fsync, SHA-256 once", least(plain), 1.2),
        Row("commit", least(first), "write, fsync, SHA-256 once", least(plain), 1.2, True),
        Row("commit, one block of 16 changed", least(second), "the first commit", least(first), 0.25),
        Row("fsck of large files", least(fsck), f"sha256sum in {cores()} processes", least(hashed), 1.2, True),
    ]


def dvc(scratch: Path, options: argparse.Namespace) -> list[Row]:
    """DVC with far fewer outputs and experiments than our large workspace has checkpoints and runs."""
    large = scratch / "large"
    if not large.exists():
        make(large, checkpoints=options.checkpoints, runs=options.runs)
    theirs = _repository(scratch / "dvc", options.outputs, options.experiments)
    turns = {
        "status": _command(large, "status"),
        "dvc status": Turn([_dvc(), "status", "-q"], theirs),
        "git log": Turn(["git", "log", "-n", "20"], theirs),
        "log": _command(large, "log", "--all", "-n", "20"),
        "dvc exp show": Turn([_dvc(), "exp", "show", "--json"], theirs),
    }
    took = best(turns, options.turns)
    return [
        Row("status", took["status"], f"dvc status, {options.outputs} outputs", took["dvc status"], 0.5),
        Row(
            "log --all -n 20",
            took["log"],
            f"dvc exp show, {options.experiments} experiments",
            took["dvc exp show"],
            0.25,
        ),
        Row("log --all -n 20", took["log"], "git log -n 20 (orientation)", took["git log"], float("inf")),
    ]


# What is timed


@dataclass(frozen=True)
class Turn:
    command: Sequence[str | Path]
    folder: Path


def _command(place: Path, *words: str) -> Turn:
    return Turn([LLMOS, *words], place)


def _self(*words: object) -> Turn:
    """This file's own `write` and `commit`, each in a process of its own."""
    return Turn([sys.executable, "-m", "benchmarks.workspace", "--child", *map(str, words)], Path(__file__).parents[1])


def _hashing(place: Path) -> Turn:
    """Each inode once, as `fsck` does."""
    found = "find .llmos/objects checkpoints -type f ! -name manifest.json -printf '%i %p\\n' | sort -u -k1,1 | cut -d' ' -f2-"
    return Turn(["sh", "-c", f"{found} | xargs -n 64 -P {cores()} sha256sum"], place)


def best(turns: Mapping[K, Turn], count: int) -> dict[K, Seconds]:
    for turn in turns.values():
        timed(turn)  # warm: the index is made, the pages are in memory
    taken: dict[K, list[Seconds]] = {name: [] for name in turns}
    for _ in range(count):
        for name, turn in turns.items():
            taken[name].append(timed(turn))
    return {name: _least(each) for name, each in taken.items()}


def _least(each: Sequence[Seconds]) -> Seconds:
    return Seconds(min(one.cpu for one in each), min(one.wall for one in each))


def timed(turn: Turn) -> Seconds:
    cpu, wall = _children(), time.perf_counter()
    subprocess.run(turn.command, cwd=turn.folder, check=True, capture_output=True)
    return Seconds(_children() - cpu, time.perf_counter() - wall)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _llmos(place: Path, *words: str) -> None:
    subprocess.run([LLMOS, *words], cwd=place, check=True, stdout=subprocess.DEVNULL)


# Commits


def child(kind: str, folder: str, mib: int, seed: int, last: int) -> None:
    """`seed` makes all blocks but the last, `last` that one."""
    if kind == "write":
        Path(folder).mkdir()
        for path in _blocks(Path(folder), mib, seed, last):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                hashlib.file_digest(file, "sha256")
        return
    ws = Workspace(Path(folder))
    made = Made("train", (), {"seed": [seed, last]}, {}, {}, 0, "2026-11-22T10:45:01Z")
    with ws.begin("train", config={}) as run, ws.stage() as staged:
        list(_blocks(staged, mib, seed, last))
        run.commit(staged, made)


def _blocks(folder: Path, mib: int, seed: int, last: int) -> list[Path]:
    """Files that no two seeds share a byte of; the same in both kinds, so that making them weighs on both alike."""
    size, paths = mib * 2**20 // BLOCKS, []
    for number in range(BLOCKS):
        start = f"{last if number == BLOCKS - 1 else seed} {number}".encode().ljust(16)
        paths.append(folder / f"model-{number:05}-of-{BLOCKS:05}.safetensors")
        paths[-1].write_bytes(start * (size // len(start)))
    return paths


def _newly_stored(place: Path) -> int:
    ws = Workspace(place)
    return ws.index.makers(ws.resolve())[-1][1]


# DVC


def _dvc() -> Path:
    found = FOLDER / "dvc" / "bin" / "dvc"
    if not found.exists():
        raise SystemExit(
            f"DVC is missing: python -m venv {FOLDER / 'dvc'} && {found.with_name('pip')} install dvc==3.67.*"
        )
    return found


def _repository(place: Path, outputs: int, experiments: int) -> Path:
    place.mkdir()

    def do(*command: str | Path) -> None:
        quiet = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a"}
        subprocess.run(command, cwd=place, check=True, capture_output=True, env={**quiet, "EMAIL": "a@example.org"})

    do("git", "init", "-q")
    do("git", "config", "user.name", "a")
    do("git", "config", "user.email", "a@example.org")
    do(_dvc(), "init", "-q")
    names = [f"model-{number}" for number in range(outputs)]
    for name in names:
        (place / name).write_text(f"the weights of {name}\n" * 20)
    do(_dvc(), "add", "-q", *names)
    (place / "params.yaml").write_text("step: 0\n")
    (place / "metrics.json").write_text('{"loss": 1}\n')
    (place / "dvc.yaml").write_text("metrics: [metrics.json]\nparams: [params.yaml]\n")
    do("git", "add", ".")
    do("git", "commit", "-qm", "first")
    for number in range(experiments):
        (place / "params.yaml").write_text(f"step: {number + 1}\n")
        do(_dvc(), "exp", "save", "-q", "-n", f"exp-{number}")
    do("git", "checkout", "-q", ".")
    return place


_PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {"growth": growth, "commit": commit, "dvc": dvc}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them when none is named")
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=1_000, help="that DVC tracks")
    parser.add_argument("--experiments", type=int, default=20, help="that DVC has")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the workspaces are made, for as long as it runs")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, folder, *numbers = sys.argv[2:]
        child(kind, folder, *map(int, numbers))
    else:
        sys.exit(main())
