"""How equal files share their bytes here: `.llmos/storage` has the word for it, which is found out anew whenever some are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llmos_cli.core.listing import read_text
from llmos_cli.errors import Corrupt

Mode = Literal["reflink", "hardlink", "copy"]
MODES: tuple[Mode, ...] = ("reflink", "hardlink", "copy")
NAME = "storage"


def read(dot: Path) -> Mode | None:
    """None before the first checkpoint; Corrupt where it is another word, or none."""
    if (said := _said(dot)) is None:
        return None
    for mode in MODES:
        if said.strip() == mode:
            return mode
    raise Corrupt(
        f".llmos/{NAME} holds {said[:80]!r}, which is none of {', '.join(MODES)}",
        hint="`llmos fsck --repair` finds out anew what this disk can do",
    )


def write(dot: Path, mode: Mode) -> None:
    """Where it does not say so already."""
    from llmos_cli.core import atomic  # here: `status` reads it, and writes nothing

    if _said(dot) != (line := f"{mode}\n"):
        atomic.write_text(dot / NAME, line, scratch=dot / "tmp")


def _said(dot: Path) -> str | None:
    try:
        return read_text(dot / NAME, errors="replace")
    except FileNotFoundError:
        return None
