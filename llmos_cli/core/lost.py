"""What was given up: checkpoints that are lost for good (`fsck --accept-loss`), a file `.llmos/lost/<id>` each.

It stands where nobody has the manifest any more, and says what the checkpoint came from as far as anybody knows: a line goes on
beyond the hole. Where only the weights are lost they count as removed too (`dropped.py`). A mark counts while what it gave up is not
here; whoever brings that back takes the mark away.

    {"checkpoint", "hash", "known", "parents"}      `hash` is that of the same line with `hash` the empty text
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import own_hash
from llmos_cli.core.listing import entries, is_file, read_bytes
from llmos_cli.core.refs import ID
from llmos_cli.errors import UNREADABLE, Corrupt, LlmosError, NotFound, NotPlain

FOLDER = ".llmos/lost/"


@dataclass(frozen=True)
class Loss:
    """`parents`: what it came from, by its manifest or its run. Where nobody knows they are all that may have been: what nothing else
    held when it was given up."""

    checkpoint: str
    parents: tuple[str, ...] = ()
    known: bool = True

    def text(self) -> str:
        """All of its file, to the byte."""
        value = {"checkpoint": self.checkpoint, "known": self.known, "parents": list(self.parents)}
        return own_hash.line(value) + "\n"


def parse(text: bytes) -> Loss | None:
    """None where it is no mark, to the byte."""
    try:
        value = json.loads(text)
        found = Loss(str(value["checkpoint"]), tuple(map(str, value["parents"])), value["known"] is True)
    except UNREADABLE:
        return None
    sound = found.text().encode() == text and all(map(ID.fullmatch, (found.checkpoint, *found.parents)))
    return found if sound else None


def mark_of(checkpoint: str) -> str:
    """What an operation that gives it up changes: from nothing to its mark."""
    return FOLDER + checkpoint


def missing(root: Path, checkpoint: str) -> LlmosError:
    """What is said where the folder of a checkpoint is not there: that it was given up, if it was."""
    if Lost(root / ".llmos").find(checkpoint) is None:
        what = "the manifest of checkpoint" if (root / "checkpoints" / checkpoint).is_dir() else "checkpoint"
        return Corrupt(f"{what} {checkpoint[:12]} is missing", hint="`llmos fsck` tells what else is affected")
    return NotFound(
        f"checkpoint {checkpoint[:12]} was given up: it is lost for good",
        hint="`llmos log --all` lists what is here; a `llmos fetch` that finds it somewhere brings it back",
    )


class Lost:
    def __init__(self, dot: Path) -> None:
        self.directory = dot / "lost"

    def __contains__(self, checkpoint: str) -> bool:
        return (self.directory / checkpoint).exists()

    def find(self, checkpoint: str) -> Loss | None:
        try:
            found = parse(read_bytes(self.directory / checkpoint))
        except (FileNotFoundError, NotADirectoryError, NotPlain):
            return None
        return found if found and found.checkpoint == checkpoint else None

    def all(self) -> dict[str, Loss]:
        found = (self.find(each.name) for each in entries(self.directory) if is_file(each))
        return {each.checkpoint: each for each in found if each is not None}

    def strange(self) -> Iterator[os.DirEntry[str]]:
        """What lies among the marks and is none, or not what was written."""
        return (each for each in entries(self.directory) if not (is_file(each) and self.find(each.name)))

    def keep(self, loss: Loss, *, scratch: Path) -> None:
        from llmos_cli.core import atomic  # here: `log` asks what was lost and loses nothing

        if loss.checkpoint not in self:
            atomic.write_text(self.directory / loss.checkpoint, loss.text(), scratch=scratch)

    def restore(self, checkpoint: str) -> None:
        """It is here again."""
        from llmos_cli.core import atomic

        if checkpoint in self:
            atomic.remove(self.directory / checkpoint)
