"""What the user wants written elsewhere: whole or not at all, through links, into devices and pipes, and refused before the work."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmos_cli.core import outfile
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import LlmosError, UsageError


def test_it_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report"
    outfile.require(path)
    assert not path.parent.exists(), "asking makes nothing"
    with outfile.written(path) as file:
        file.write("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(RuntimeError), outfile.written(path) as file:
        file.write("other")
        raise RuntimeError
    assert path.read_text() == "half" and [each.name for each in path.parent.iterdir()] == ["report"]


@pytest.mark.parametrize("place", [".llmos/refs/heads/evil", "checkpoints/zz", "configs/train.yaml", "llmos.yaml"])
def test_no_place_is_a_workspaces_own(ws: Workspace, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(ws.root)
    for root in (ws.root, tmp_path / "link"):
        with pytest.raises(UsageError, match="is no place for an output"):
            outfile.require(root / place)
    outfile.require(ws.root / "reports" / place)


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    outfile.require(tmp_path / "link")
    outfile.write(tmp_path / "link", "told")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "told"


def test_a_pipe_takes_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    outfile.require(tmp_path / "pipe")
    outfile.write(tmp_path / "pipe", "told")
    reader.join(10)
    assert heard == ["told"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_stdout_is_written_after_what_is_there(tmp_path: Path) -> None:
    """Behind `/dev/stdout` may be a file: neither is it replaced nor begun again."""
    code = "from pathlib import Path; from llmos_cli.core import outfile; print('one'); outfile.write(Path('/dev/stdout'), 'two\\n'); print('three')"
    with (tmp_path / "said").open("w") as said:
        subprocess.run([sys.executable, "-c", code], stdout=said, check=True)
    assert (tmp_path / "said").read_text() == "one\ntwo\nthree\n"
    assert Path("/dev/stdout").is_symlink()


def test_a_device_that_is_full_stays_one() -> None:
    before = Path("/dev/full").stat().st_rdev
    outfile.require(Path("/dev/full"))
    with pytest.raises(LlmosError, match="cannot write /dev/full: the disk is full"):
        outfile.write(Path("/dev/full"), "x")
    assert Path("/dev/full").stat().st_rdev == before


@pytest.mark.parametrize("name", ["", "file/report", "file/new/report", "dangling/report"])
def test_what_can_be_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"is a folder|is no folder"):
        outfile.require(tmp_path / name)


def test_what_the_system_refuses_is_said_before() -> None:
    with pytest.raises(LlmosError, match="cannot write /proc/nowhere/report: no such file or directory"):
        outfile.require(Path("/proc/nowhere/report"))
