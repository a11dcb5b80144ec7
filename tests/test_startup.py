"""Start-up: `llmos --version`, `status` and `--help` against a minimal typer app, in CPU time, in one run."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from llmos_cli.operations import remote as remotes
from llmos_cli.operations.push import push
from tests.core.conftest import commit_to

ROUNDS = 5

MINIMAL = """
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "you") -> None:
    print(f"hello {name}")


@app.command()
def bye(name: str = "you") -> None:
    print(f"bye {name}")


app()
"""


def test_start_up_is_that_of_a_minimal_app(workspace, tmp_path):
    (minimal := tmp_path / "minimal.py").write_text(MINIMAL)
    llmos = Path(sys.executable).parent / "llmos"
    cpu = _medians(
        {
            "minimal": [sys.executable, minimal, "hello"],
            "minimal --help": [sys.executable, minimal, "--help"],
            "--version": [llmos, "--version"],
            "status": [llmos, "status"],
            "--help": [llmos, "--help"],
        }
    )
    assert cpu["--version"] <= 1.15 * cpu["minimal"], cpu
    assert cpu["status"] <= 1.15 * cpu["minimal"], cpu
    assert cpu["--help"] <= 1.5 * cpu["minimal --help"], cpu


def test_a_push_of_nothing_new_costs_little_more_than_a_look(workspace, tmp_path):
    llmos = Path(sys.executable).parent / "llmos"
    commit_to(workspace, {"a": "1"})
    remotes.add(workspace, "origin", str(tmp_path / "far"))
    push(workspace)
    cpu = _medians({"status": [llmos, "status"], "push": [llmos, "push"]})
    assert cpu["push"] <= 2 * cpu["status"], cpu


def _medians(commands: dict[str, list[str | Path]]) -> dict[str, float]:
    """CPU seconds of each, the median of several rounds in which all take turns: the noise of the machine meets them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            before = _children()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(_children() - before)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
