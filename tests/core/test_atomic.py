"""Disk writes: whole or not at all, and refusals in a sentence."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from llmos_cli.core import atomic
from llmos_cli.errors import LlmosError


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f"
    atomic.write_text(path, "one")
    atomic.write_text(path, "two", scratch=tmp_path / "scratch")
    assert path.read_text() == "two"
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_a_file_that_cannot_be_replaced_stays_and_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.write_text(tmp_path / "f", "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_folder_is_published_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    assert atomic.publish(tmp_path / "one", tmp_path / "final")
    assert not atomic.publish(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final" / "f").read_text() == "one"
    assert (tmp_path / "two" / "f").read_text() == "two"


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    atomic.remove(tmp_path / "no" / "such")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_refusals_are_sentences(number: int, reason: str) -> None:
    with pytest.raises(LlmosError) as caught, atomic.refusals("a/b"):
        raise OSError(number, "refused")
    assert (caught.value.message, caught.value.exit_code, bool(caught.value.hint)) == (
        f"cannot write a/b: {reason}",
        1,
        True,
    )


def test_what_numpy_cannot_write_is_a_full_disk() -> None:
    with pytest.raises(LlmosError, match="cannot write /dev/full: the disk is full"), atomic.refusals("/dev/full"):
        np.zeros(1 << 20, dtype=np.uint8).tofile("/dev/full")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.refusals("a/b"):
        (tmp_path / "missing").read_text()
