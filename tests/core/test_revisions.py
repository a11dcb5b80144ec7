"""Revisions: every way of naming a checkpoint, and what is said of those that name none or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_cli.core.refs import HEADS, RUNS, TAGS, Refs
from llmos_cli.core.revisions import resolve
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import AmbiguousRevision, NotFound

ONE, TWO, THREE, SIDE = "1111aa" + "0" * 58, "1111bb" + "0" * 58, "3" * 64, "5" * 64
RUN = "20261122-104501-train-3f2a"
PARENTS = {THREE: (TWO, SIDE), TWO: (ONE,), ONE: (), SIDE: (ONE,)}


@pytest.fixture
def refs(ws: Workspace) -> Refs:
    """main is at THREE, whose first parents are TWO and ONE, and whose second parent is SIDE."""
    for checkpoint in PARENTS:
        (ws.checkpoints / checkpoint).mkdir()
        (ws.checkpoints / checkpoint / "manifest.json").touch()
    for name, value in {HEADS + "main": THREE, HEADS + "try/it": TWO, TAGS + "base": ONE, RUNS + RUN: SIDE}.items():
        ws.refs.write(name, value)
    return ws.refs


def ask(ws: Workspace, rev: str) -> str:
    return resolve(rev, refs=ws.refs, checkpoints=ws.checkpoints, parents=lambda name: PARENTS[name])


@pytest.mark.parametrize(
    ("rev", "expected"),
    [
        ("HEAD", THREE),
        ("@", THREE),
        ("main", THREE),
        ("heads/main", THREE),
        ("refs/heads/main", THREE),
        ("try/it", TWO),
        ("base", ONE),
        ("tags/base", ONE),
        ("HEAD~1", TWO),
        ("HEAD~", TWO),
        ("HEAD~2", ONE),
        ("HEAD~0", THREE),
        ("HEAD^", TWO),
        ("HEAD^^", ONE),
        ("HEAD^2", SIDE),
        ("HEAD^2~1", ONE),
        ("@~1^", ONE),
        ("~1", TWO),
        ("1111a", ONE),
        ("1111b~1", ONE),
        (THREE, THREE),
        (RUN, SIDE),
        ("20261122-10", SIDE),
        (f"runs/{RUN}", SIDE),
    ],
)
def test_names(ws: Workspace, refs: Refs, rev: str, expected: str) -> None:
    assert ask(ws, rev) == expected


@pytest.mark.parametrize(
    ("rev", "sentence", "hint"),
    [
        ("mian", "no checkpoint is called 'mian'", "did you mean main?"),
        ("HEAD~3", "HEAD~3 does not exist: 1111aa000000 has no parent", "`llmos log`"),
        ("HEAD^3", "HEAD^3 does not exist: 333333333333 has 2 parents only", "`llmos log`"),
        ("111", "no branch or tag is called 111", "at least 4 digits"),
        ("9999", "no checkpoint is called '9999'", "`llmos log --all`"),
        ("1111aaff", "no checkpoint is called '1111aaff'", "did you mean 1111aa000000?"),
        ("", "no checkpoint is called ''", "`llmos log --all`"),
        ("../../etc", "no checkpoint is called '../../etc'", ""),
        ("main~x", "'main~x' is not a revision", "HEAD, a branch"),
    ],
)
def test_what_is_not_there(ws: Workspace, refs: Refs, rev: str, sentence: str, hint: str) -> None:
    with pytest.raises(NotFound) as caught:
        ask(ws, rev)
    assert caught.value.message == sentence
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("rev", "sentence"),
    [
        ("1111", "1111 could be any of 2 checkpoints: 1111aa000000, 1111bb000000"),
        ("both", "both is both a branch (333333333333) and a tag (1111aa000000)"),
    ],
)
def test_what_is_several(ws: Workspace, refs: Refs, rev: str, sentence: str) -> None:
    refs.write(HEADS + "both", THREE)
    refs.write(TAGS + "both", ONE)
    with pytest.raises(AmbiguousRevision) as caught:
        ask(ws, rev)
    assert caught.value.message == sentence


def test_a_branch_without_checkpoint(ws: Workspace) -> None:
    with pytest.raises(NotFound, match="branch main has no checkpoint yet"):
        ask(ws, "HEAD")


@given(st.sets(st.text("01", min_size=6, max_size=6), min_size=1, max_size=8), st.text("01", min_size=4, max_size=6))
def test_prefixes_against_the_obvious_reference(tmp_path_factory: Any, names: set[str], prefix: str) -> None:
    root: Path = tmp_path_factory.mktemp("w")
    ws = Workspace.create(root)
    ids = {name + "0" * 58 for name in names}
    for checkpoint in ids:
        (ws.checkpoints / checkpoint).mkdir()
        (ws.checkpoints / checkpoint / "manifest.json").touch()
    matching = sorted(checkpoint for checkpoint in ids if checkpoint.startswith(prefix))
    if len(matching) == 1:
        assert ask(ws, prefix) == matching[0]
    else:
        with pytest.raises(AmbiguousRevision if matching else NotFound):
            ask(ws, prefix)
