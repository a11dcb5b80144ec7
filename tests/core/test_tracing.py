"""The tracer itself: a command that does not come to its end is killed with all that it began, and said; the next one runs as if
nothing had been."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.core.tracing import Forks

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")


def endless() -> None:
    """With a process of its own group, and one line said."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], process_group=0)
    Path("child").write_text(str(child.pid))
    print("so far", flush=True)
    nap()


def nap() -> None:
    time.sleep(99)


def brief() -> None:
    Path("done").touch()


def test_what_does_not_end_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    forks = Forks(tmp_path, ["llmos_cli.app", __name__], patience=3)
    try:
        with pytest.raises(
            AssertionError, match=r"not ended after 3 s, and killed: .*:endless under strace .*said: so far"
        ):
            forks.run([f"{__name__}:endless"], tmp_path)
        assert not alive(int((tmp_path / "child").read_text()))
        with (
            pytest.raises(AssertionError, match="not ended after 3 s"),
            forks.until(f"{__name__}:nap", [f"{__name__}:endless"], tmp_path),
        ):
            forks.run([f"{__name__}:endless"], tmp_path)
        assert forks.run([f"{__name__}:brief"], tmp_path) == 0 and (tmp_path / "done").exists()
    finally:
        forks.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
