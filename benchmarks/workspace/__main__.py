"""How fast the workspace is and how its cost grows: against 1 GiB of plain writing and hashing, against one a thousand times smaller, and
against DVC and git-annex.

    python -m benchmarks.workspace [growth] [commit] [dvc] [--checkpoints 10000] [--runs 100000] [--operations 10000] [--mib 1024] [--turns 5]

Whole commands in processes of their own, which take turns within one run; the best turn of each counts. Ratios of CPU seconds (the command's
own and its children's) are held against the bars, wall seconds stand beside them; `commit` is held against its bar by wall seconds too, and
`fsck` by those alone, since hashing on several cores is what it is about. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.workspace.commits import commits
from benchmarks.workspace.growth import growth
from benchmarks.workspace.peers import dvc
from benchmarks.workspace.timing import Row

PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Row]]] = {
    "growth": growth,
    "commit": commits,
    "dvc": dvc,
}


def main() -> int:
    options = arguments()
    print(f"{'what':34} {'CPU s':>7} {'wall s':>7}   {'against':34} {'CPU s':>7} {'wall s':>7}   ratio")
    missed, started = 0, time.monotonic()
    # What a peer left running in the background may still write there.
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as scratch:
        for part in options.parts or PARTS:
            for row in PARTS[part](Path(scratch), options):
                print(row.line, flush=True)
                missed += row.missed
            print(f"-- {part}: after {time.monotonic() - started:.0f} s", flush=True)
    print(f"{missed} bar{'s' if missed != 1 else ''} missed" if missed else "every bar is met")
    return 1 if missed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them when none is named")
    parser.add_argument("--checkpoints", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--operations", type=int, default=10_000, help="that moved a tag of a short line")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--outputs", type=int, default=2_000, help="that DVC tracks")
    parser.add_argument("--experiments", type=int, default=2_000, help="that DVC has")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the workspaces are made, for as long as it runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
