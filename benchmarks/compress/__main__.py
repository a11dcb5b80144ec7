"""Compression against its peers, on one model: KL to the dense parent, time and memory, and the bars that the README states.

    python -m benchmarks.compress MODEL_DIR [--rows W4,W3,2:4,50%,memory] [--peers llm-compressor,auto-round] [--seeds 3]

Run it from the repository's root. MODEL_DIR is anything that `llmos import` takes. Every cell is a process of its own with the same
model, the same calibration tokens and seeds as its neighbours, kept in benchmarks/.cache by the hash of its inputs: a run that was cut
off goes on. Exits 1 when a bar does not hold; what noise leaves open is told as undecided.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compress import table
from benchmarks.compress.cells import OWN, Cell, Measured, measure
from benchmarks.compress.material import Material, material
from benchmarks.compress.rows import AUTO_ROUND_PARAMETERS, ROWS, Form, Row
from benchmarks.compress.venvs import REQUIREMENTS, ROOT


def main() -> None:
    asked = arguments()
    seeds = range(asked.seeds)
    shared = material(
        asked.model, asked.cache, sources=asked.sources, length=asked.length, samples=asked.samples,
        held_out=asked.held_out, seeds=asked.seeds,
    )  # fmt: skip
    print(told(asked, shared), table.HEADER, sep="\n", flush=True)
    judgements: list[table.Judgement] = []
    for name in asked.rows:
        row = ROWS[name](Form(asked.group_size, asked.heal, asked.samples))
        judgements += table.judged(row, dict(measured(row, shared, asked)), seeds)
    print("", *(f"- **{found.verdict}** {found.sentence}" for found in judgements), sep="\n")
    sys.exit(1 if any(found.verdict != "holds" for found in judgements) else 0)


def arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--rows", type=names, default=["W4", "W3", "2:4", "50%"], help=",".join(ROWS).replace("%", "%%")
    )
    parser.add_argument("--peers", type=names, default=["llm-compressor", "auto-round"], help=",".join(REQUIREMENTS))
    parser.add_argument("--only", default="", help="cells whose name matches this regular expression")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--heal", type=int, default=100, help="steps")
    parser.add_argument("--samples", type=int, default=64, help="sequences of calibration")
    parser.add_argument("--held-out", type=int, default=256, help="sequences to judge on")
    parser.add_argument("--length", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--sources", default="builtin:pydoc,builtin:stdlib", help="as in data.source")
    parser.add_argument("--again", action="store_true", help="measure even what is in the cache, to compare times")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks" / ".cache")
    return parser.parse_args()


def told(asked: argparse.Namespace, shared: Material) -> str:
    return (
        f"{asked.model}: {shared.parameters / 1e6:.1f}M parameters; {asked.sources}; calibration {asked.samples} x {asked.length} "
        f"tokens, held out {asked.held_out} x {asked.length}; groups of {asked.group_size}\n"
    )


def measured(row: Row, shared: Material, asked: argparse.Namespace) -> Iterator[tuple[tuple[str, int], Measured]]:
    """The row's cells, each told as soon as it is known."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S")
    for seed in range(asked.seeds):
        for cell in row.cells:
            if re.search(asked.only, cell.name) and wanted(cell, shared, asked.peers):
                found = measure(cell, shared, seed, run=started, again=asked.again)
                print(table.line(row, found), flush=True)
                yield (cell.name, seed), found


def wanted(cell: Cell, shared: Material, peers: list[str]) -> bool:
    small = shared.parameters <= AUTO_ROUND_PARAMETERS
    return cell.who == OWN or (cell.who in peers and (small or cell.who != "auto-round"))


if __name__ == "__main__":
    main()
