"""The same questions to a workspace of ten checkpoints and to a large one, and to one of ten whose log of operations is long; `gc` and `push` of
nothing against `status` of the same."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.synthetic import LLMOS, make
from benchmarks.workspace.timing import Row, best, command, do, timed

COMMANDS = {
    "status": ["status"],
    "log -n 20": ["log", "-n", "20"],
    "log --all -n 20": ["log", "--all", "-n", "20"],
    "show": ["show"],
    "tag NAME": ["tag", "-f", "now"],
}
NOTHING_NEW = {"gc": ["gc"], "push": ["push"]}
LAST = {"op log -n 5": ["op", "log", "-n", "5"], "audit -n 5": ["audit", "-n", "5"]}
"""Asked of a long log alone: its end is all that they are about."""
WHOLE = {
    "log --metric": ["log", "--metric", "bits_per_byte"],
    "op log -n 20": ["op", "log", "-n", "20"],
    "du": ["du"],
    "audit": ["audit"],
    "fsck": ["fsck"],
}
"""No bar is set for these, which look at everything or at one line; their seconds should not be absurd."""


def growth(scratch: Path, options: argparse.Namespace) -> Iterator[Row]:
    small = make(scratch / "small", checkpoints=10, runs=10)
    large = made(scratch, options)
    for place in (small, large):
        do(place, LLMOS, "remote", "add", "origin", str(place) + "-remote")
        do(place, LLMOS, "push")
    asked = {**COMMANDS, **NOTHING_NEW}
    turns = {(name, place.name): command(place, *words) for name, words in asked.items() for place in (small, large)}
    took = best(turns, options.turns)
    print(f"-- with {options.checkpoints:,} / {options.runs:,} checkpoints / runs")
    for name in COMMANDS:
        yield Row(name, took[name, "large"], "with 10 / 10", took[name, "small"], 1.3)
    for name in NOTHING_NEW:
        for size in ("small", "large"):
            yield Row(f"{name}, nothing to do, {size}", took[name, size], "status", took["status", size], 2.0)
    for name, words in WHOLE.items():
        yield Row(f"{name}, large", timed(command(large, *words)), "status", took["status", "large"])
    yield from _long_log(scratch, options)


def _long_log(scratch: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A short line, all of which `log` shows, and a tag that was moved from one of its ends to the other, again and again."""
    few = make(scratch / "few", checkpoints=10, runs=10, moves=10)
    many = make(scratch / "many", checkpoints=10, runs=10, moves=options.operations)
    asked = {**COMMANDS, **LAST, "gc": ["gc"], "undo": ["undo", "--dry-run"]}
    turns = {(name, place.name): command(place, *words) for name, words in asked.items() for place in (few, many)}
    took = best(turns, options.turns)
    print(f"-- with {options.operations:,} more operations")
    for name in (*COMMANDS, *LAST):
        yield Row(name, took[name, "many"], "with 10", took[name, "few"], 1.3)
    yield Row("gc, nothing to do", took["gc", "many"], "status", took["status", "many"], 2.0)
    yield Row("undo", took["undo", "many"], "with 10", took["undo", "few"])


def made(scratch: Path, options: argparse.Namespace) -> Path:
    large = scratch / "large"
    return large if large.exists() else make(large, checkpoints=options.checkpoints, runs=options.runs)
