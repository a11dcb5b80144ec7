"""Documents: text files, read when asked for, so that a corpus larger than memory can be tokenised.

A file is one document. A file of more than 32,000 characters is cut at blank lines (or line ends) into passages of about
8,000, so that a single book can be split for training and evaluation as well; put together they are the file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from llmos_cli.data.places import read_text
from llmos_cli.data.rows import Lazy

LONG, PASSAGE = 32_000, 8_000


class Documents(Lazy):
    """The passages of some text files; the file read last is kept, as its passages are asked for in a row."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self.passages = [(index, part) for index in range(len(self.files)) for part in cuts(self._text(index))]

    def __len__(self) -> int:
        return len(self.passages)

    def item(self, index: int) -> str:
        file, part = self.passages[index]
        return self._text(file)[part]

    def _text(self, index: int) -> str:
        if getattr(self, "_kept", (None, ""))[0] != index:
            self._kept = index, read_text(self.files[index])
        return self._kept[1]


def cuts(text: str) -> list[slice]:
    """Where the passages of a text start and end; none for blank text."""
    if not text.strip():
        return []
    if len(text) <= LONG:
        return [slice(0, len(text))]
    ends = [0]
    while len(text) - ends[-1] > PASSAGE * 3 // 2:
        ends.append(_boundary(text, ends[-1] + PASSAGE))
    ends += [len(text)] if ends[-1] < len(text) else []
    return [slice(start, end) for start, end in pairwise(ends)]


def _boundary(text: str, near: int) -> int:
    """The end of the paragraph at `near`, else of its line, at most half a passage on."""
    for sign in ("\n\n", "\n", " "):
        found = text.find(sign, near, near + PASSAGE // 2)
        if found >= 0:
            return found + len(sign)
    return near
