"""A program of ours in a process of its own, of bounded memory and time: what a stranger's bytes do there, they do to nobody else.

run(PROGRAM, *ARGUMENTS, memory=BYTES, seconds=SECONDS)             here
python -I bounded.py BYTES SECONDS PROGRAM ARGUMENTS...             there
"""

from __future__ import annotations

import os
import resource
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ALONE = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""One thread: each more takes memory and time of what is allowed."""


@dataclass(frozen=True)
class Ended:
    """`code`: its exit status, negative where a signal ended it; `said`: its one line, or why it has none."""

    code: int
    said: str


def run(program: Path, *arguments: Path, memory: int, seconds: int) -> Ended:
    """`memory` in bytes, beyond which it gets none; `seconds` of computing."""
    command = [sys.executable, "-I", __file__, str(memory), str(seconds), str(program), *map(str, arguments)]
    ended = subprocess.run(
        command, env=os.environ | ALONE, capture_output=True, text=True, errors="replace", check=False
    )
    return Ended(ended.returncode, ended.stdout.strip() or _why(ended.returncode, memory, seconds))


def _why(code: int, memory: int, seconds: int) -> str:
    if code == -signal.SIGXCPU:
        return f"reading it takes more than {seconds} seconds"
    if code < 0:
        return f"reading it takes more than {memory >> 20:,} MiB of memory"
    return f"the reader ended with {code}"


def _limit(kind: int, most: int) -> None:
    """Where the system or its administrator allows less, that."""
    _, hard = resource.getrlimit(kind)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (allowed, hard))


def _main(memory: str, seconds: str, program: str, *arguments: str) -> None:
    _limit(resource.RLIMIT_DATA, int(memory))
    _limit(resource.RLIMIT_CPU, int(seconds))
    _limit(resource.RLIMIT_CORE, 0)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    _main(*sys.argv[1:])
