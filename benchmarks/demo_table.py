"""The table at the end of the demo: python benchmarks/demo_table.py base HEAD~1 HEAD, from inside a workspace.

Every number is read from the JSON of the command line itself; a row or a number that is missing fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

HEADERS = ("checkpoint", "stage", "size", "newly stored", "bits/byte", "KL to base", "tokens read/s")


def main(revisions: list[str]) -> None:
    evaluated = {each["rev"]: each for each in llmos("eval", *revisions)["evaluations"]}
    stored = {each["id"]: each for each in llmos("du")["usage"]}
    rows = [row(evaluated[rev], stored[evaluated[rev]["checkpoint"]], first=rev == revisions[0]) for rev in revisions]
    widths = [max(len(line[column]) for line in [HEADERS, *rows]) for column in range(len(HEADERS))]
    for line in [HEADERS, *rows]:
        print(
            "  ".join(
                cell.ljust(width) if at < 2 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
        )


def llmos(*words: str) -> Any:
    ran = subprocess.run(["llmos", *words, "--json", "--quiet"], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout)


def row(evaluation: dict[str, Any], usage: dict[str, Any], *, first: bool) -> tuple[str, ...]:
    measured = {name: metric["value"] for name, metric in evaluation["metrics"].items()}
    return (
        evaluation["checkpoint"][:12],
        usage["operation"],
        megabytes(usage["size"]),
        megabytes(usage["stored"]),
        f"{measured['bits_per_byte']:.3f}",
        "0" if first else f"{measured['kl_base']:.4f}",
        f"{measured['throughput']:,.0f}",
    )


def megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


if __name__ == "__main__":
    main(sys.argv[1:])
