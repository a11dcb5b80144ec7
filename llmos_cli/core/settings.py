"""llmos.yaml as far as the workspace itself reads it: that it is there, and of a format that we know.

Without a YAML parser: `status` has no time for one, and a newer format may not even be read by ours.
"""

from __future__ import annotations

import re
from pathlib import Path

from llmos_cli.core.listing import read_bytes
from llmos_cli.errors import Corrupt, LlmosError

NAME = "llmos.yaml"
FORMAT = 1
FIRST = f"format: {FORMAT}\n"
"""What it says at first."""
_LINE = re.compile(rb"^format[ \t]*:[ \t]*([^#\r\n]*)", re.MULTILINE)


def check_format(root: Path) -> None:
    """LlmosError where it is newer than ours, Corrupt where no llmos wrote it. A file that says none is of the first."""
    path = root / NAME
    try:
        match = _LINE.search(read_bytes(path, linked=True))
    except FileNotFoundError:
        return
    said = match[1].decode(errors="replace").strip().strip("'\"") if match else str(FORMAT)
    if said.isdecimal() and int(said) > FORMAT:
        raise LlmosError(
            f"{path} says format {int(said)}, and this llmos knows formats up to {FORMAT}",
            hint="install a newer llmos: `pip install -U llmos-cli`",
        )
    if not said.isdecimal() or int(said) < 1:
        raise Corrupt(
            f"{path} says format {said[:40]!r}, which no llmos has",
            hint=f"the workspace is as it was: write `format: {FORMAT}` there, if no other llmos made it",
        )


def is_missing(root: Path) -> bool:
    """From a workspace: a folder that is none need not have it."""
    return not (root / NAME).exists() and (root / ".llmos" / "refs").is_dir()


def must_be_there(root: Path) -> None:
    """Corrupt where what it said would go unheard."""
    if is_missing(root):
        raise Corrupt(f"{NAME} is missing, {UNHEARD}", hint=HINT)


UNHEARD = "and its defaults, remotes and pipeline go unheard"
HINT = "`llmos fsck --repair` writes it as the log of operations knows it; a backup has it as it was"
