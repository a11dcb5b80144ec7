"""Several training runs at once: one process for each config file, the machine's threads shared out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli import device
from llmos_cli.core.view import Table, number, short
from llmos_cli.errors import LlmosError, UsageError
from llmos_cli.events import Emit, Note

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class SeveralResult:
    """`runs`: what `llmos train -c FILE --json` said of each file, in the files' order."""

    files: tuple[str, ...]
    runs: tuple[dict[str, Any], ...]

    def view(self) -> Table:
        names = sorted({name for run in self.runs for name in run["metrics"].get("test", {})})
        rows = [
            [file, short(run["checkpoint"]), run["steps"], *(_shown(run, name) for name in names)]
            for file, run in zip(self.files, self.runs, strict=True)
        ]
        return Table(["config", "checkpoint", "steps", *names], rows)


def _shown(run: dict[str, Any], name: str) -> str | None:
    value = run["metrics"].get("test", {}).get(name)
    return None if value is None else number(value)


def several(
    ws: Workspace,
    rev: str | None,
    files: Sequence[Path],
    sets: Sequence[str],
    unsets: Sequence[str],
    *,
    jobs: int,
    emit: Emit,
) -> SeveralResult:
    """Train once for each file, `jobs` at a time. No branch moves: there is not one result to move it to."""
    if not files:
        raise UsageError("--jobs takes one -c FILE for each run", hint="llmos train --jobs 2 -c a.yaml -c b.yaml")
    at_once = min(jobs, len(files))
    threads = max(1, device.threads() // at_once)
    words = [rev] if rev else []
    words += [word for text in sets for word in ("-s", text)] + [word for text in unsets for word in ("--unset", text)]

    def one(file: Path) -> dict[str, Any] | LlmosError:
        emit(Note(f"training with {file}"))
        try:
            return _train(ws, file, words, threads=threads)
        except LlmosError as failure:  # told when the others are done
            return failure

    with ThreadPoolExecutor(at_once) as pool:
        runs = dict(zip(map(str, files), pool.map(one, files), strict=True))
    done = {file: run for file, run in runs.items() if not isinstance(run, LlmosError)}
    failed = [run for run in runs.values() if isinstance(run, LlmosError)]
    if failed:
        made = ", ".join(f"{file} made {short(run['checkpoint'])}" for file, run in done.items())
        raise LlmosError("; ".join(failure.message for failure in failed), hint=made or failed[0].hint)
    return SeveralResult(tuple(done), tuple(done.values()))


def _train(ws: Workspace, file: Path, words: Sequence[str], *, threads: int) -> dict[str, Any]:
    """One run in a process of its own; LlmosError with its sentence when it fails."""
    command = [
        sys.executable,
        "-m",
        "llmos_cli",
        "train",
        *words,
        "-c",
        str(file.resolve()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "--keep-branch", "--quiet", "--json"], cwd=ws.root, env=environment, capture_output=True, text=True
    )
    said = json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}
    if done.returncode:
        problem = said.get("error", {})
        raise LlmosError(
            f"training with {file} failed: {problem.get('message', done.stderr.strip()[-200:])}",
            hint=problem.get("hint") or "`llmos ps --all` lists its run",
        )
    return dict(said)
