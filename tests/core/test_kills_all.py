"""Every command is in a row of the kill matrix, or it only reads, or it is said here why it is in none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from llmos_cli import catalog
from llmos_cli.lazy import commands_below
from tests.core import (
    test_kills,
    test_kills_data,
    test_kills_model,
    test_kills_pipeline,
    test_kills_remote,
    test_kills_resumed,
)
from tests.test_dry_run import CASES
from tests.test_read_only import CHANGING, READING

MATRIX = (
    test_kills,
    test_kills_data,
    test_kills_model,
    test_kills_pipeline,
    test_kills_remote,
    test_kills_resumed,
)
OF_THEIR_OWN = {"init", "clone", "restore", "export", "tune", "deploy", "stop"}
"""Rows that are tests for themselves, in test_kills.py, test_kills_remote.py, test_kills_model.py, test_kills_tune.py and
test_kills_served.py."""
NONE = {
    "bisect": "a row of evaluations, each of which is as `eval`",
    "predict": "reads the workspace; `-o FILE` is a file of the user's",
    "reproduce": "works in a scratch workspace",
    "verify": "reads",
    "why": "works in scratch workspaces; what it measured is kept in the cache, one file each",
}


def every() -> Iterator[str]:
    """Every command, those of groups one by one."""
    for name in catalog.commands():
        below = commands_below(name)
        yield from (f"{name} {each}" for each in below) if below else (name,)


def called(words: tuple[str, ...]) -> str:
    """The command of a command line."""
    words = words[2:] if words[0] == "-C" else words
    return " ".join(words[:2]) if words[0] in catalog.commands() and commands_below(words[0]) else words[0]


def killed() -> set[str]:
    return OF_THEIR_OWN | {called(words) for module in MATRIX for words in module.COMMANDS.values()}


def test_every_command_is_killed_or_reads() -> None:
    reads = {called(words) for words in chain(*READING.values())}
    assert set(every()) - killed() - reads == set(NONE) - reads
    assert not set(NONE) & killed()


@pytest.mark.parametrize("words", [*chain(*CASES.values()), *(words for _, words in CHANGING)], ids=" ".join)
def test_what_changes_something_is_killed(words: tuple[str, ...]) -> None:
    """`READING` has what llmos is seen to write nothing for; every other way to call a command is here."""
    assert called(words) in killed() | set(NONE)
