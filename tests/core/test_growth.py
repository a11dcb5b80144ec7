"""What a command opens and looks at does not grow with the workspace: counted by strace, where a clock would only guess."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.synthetic import make
from llmos_cli.core.workspace import Workspace

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")

COMMANDS = (["status"], ["log", "-n", "20"], ["log", "--all", "-n", "20"], ["show"], ["tag", "now"], ["tag"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small") / "w", checkpoints=100, runs=200)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("large") / "w", checkpoints=500, runs=2500)


def test_looks_at_as_many_files_in_a_large_workspace_as_in_a_small_one(small: Path, large: Path) -> None:
    for workspace in (small, large):
        looked(workspace, "status")  # the index is made
    counts = {" ".join(command): [looked(folder, *command) for folder in (small, large)] for command in COMMANDS}
    assert all(few == many for few, many in counts.values()), counts


def test_a_new_run_costs_no_look_at_the_old_ones(small: Path, large: Path) -> None:
    for workspace in (small, large):
        with Workspace(workspace).begin("eval", config={}):
            pass
    few, many = (looked(workspace, "status") for workspace in (small, large))
    assert many <= few, (few, many)


def test_gc_reads_no_manifest_and_no_run(large: Path) -> None:
    looked(large, "status")
    assert looked(large, "gc", below="checkpoints/") <= 1
    assert looked(large, "gc", below="runs/") <= 1


def looked(workspace: Path, *command: str, below: str = "") -> int:
    """Calls that name a file of the workspace (`below` a folder of it)."""
    trace = workspace.parent / "trace"
    llmos = Path(sys.executable).parent / "llmos"
    subprocess.run(
        ["strace", "-f", "-e", "trace=%file", "-o", trace, llmos, *command],
        cwd=workspace,
        check=True,
        capture_output=True,
    )
    return sum(f'"{workspace}/{below}' in line for line in trace.read_text().splitlines())
