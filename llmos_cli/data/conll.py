"""CoNLL files: one word a line with its tags in columns, a blank line after each sentence.

The word is the first column and the tag the last, unless `data.columns` gives their numbers (from 1); in CoNLL-U files
the word is column 2 and its part of speech column 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmos_cli.data.places import read_text
from llmos_cli.data.rows import Rows
from llmos_cli.errors import UsageError
from llmos_cli.options.data import Columns


def read(files: Sequence[str], columns: Columns, *, tagged: bool = True) -> Rows:
    """(tokens, tags) of each sentence; without tags where they are not asked for (to predict them)."""
    sentences = [sentence for file in files for sentence in _sentences(file, columns, tagged)]
    rows = {"tokens": [words for words, _ in sentences], "tags": [tags for _, tags in sentences]}
    return Rows(rows if tagged else {"tokens": rows["tokens"]})


def _sentences(file: str, columns: Columns, tagged: bool) -> Iterator[tuple[list[str], list[str]]]:
    universal = ".conllu" in file
    word_at = _column("tokens", columns.tokens, 1 if universal else 0)
    tag_at = _column("tags", columns.tags, 3 if universal else -1)
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*read_text(file).split("\n"), ""], start=1):
        fields = line.split("\t" if universal else None)
        if not line.strip() or fields[0] == "-DOCSTART-":
            if words:
                yield words, tags
            words, tags = [], []
        elif not (universal and (line.startswith("#") or not fields[0].isdecimal())):
            needed = max(word_at, tag_at if tagged else 0, 1 if tagged else 0)
            if len(fields) <= needed:
                raise UsageError(
                    f"line {number} of {file} has {len(fields)} column(s), {needed + 1} are needed",
                    hint="Each line is a word and its tags, a blank line ends a sentence.",
                )
            words.append(fields[word_at])
            tags.append(fields[tag_at])


def _column(name: str, given: str | None, default: int) -> int:
    if given is None:
        return default
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(
            f"data.columns.{name} is {given!r}, but the columns of a CoNLL file have numbers",
            hint="The first one is 1.",
        )
    return int(given) - 1
