"""What is no plain file, in the place of one that llmos keeps: it is said in one sentence, and nobody waits at it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmos_cli.core.refs import TAGS
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.fsck import fsck
from tests.conftest import Ran

KEPT = (
    "llmos.yaml",
    "configs/train.yaml",
    ".llmos/HEAD",
    ".llmos/operations.jsonl",
    ".llmos/pending.json",
    ".llmos/audit.jsonl",
    ".llmos/audit.head",
    ".llmos/storage",
    ".llmos/identity",
    ".llmos/locks/refs",
    ".llmos/refs/heads/main",
    ".llmos/dropped/*",
    ".llmos/sealed/*.json",
    ".llmos/snapshots/*.json",
    ".llmos/snapshots/objects/*/*",
    ".llmos/objects/*/*",
    "checkpoints/*/manifest.json",
    "runs/*/events.jsonl",
    "runs/*/config.yaml",
    "runs/*/configs/train.yaml",
    "runs/*/log.txt",
)
CACHES = (".llmos/index.sqlite", ".llmos/index.sqlite-journal")
READING = (
    ["status"],
    ["log", "--all"],
    ["ps", "--all"],
    ["audit"],
    ["audit", "--verify"],
    ["op", "log"],
    ["undo", "--dry-run"],
    ["gc", "--dry-run"],
    ["du"],
    ["data", "list"],
)
WRITING = (["tag", "new"], ["backup"], ["push", "--all"], ["fetch"])
PATIENCE = 10.0
"""Seconds, of what takes a fraction of one."""


@contextmanager
def nobody_waits(pipe: Path) -> Iterator[None]:
    """Fails where somebody waits for what a pipe may say, and lets them go on."""
    over, waited = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(PATIENCE):
            waited.set()
            if pipe.is_fifo():
                os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert not waited.is_set(), f"somebody waited at {pipe}"


def stand_in(place: Path, pipe: Path, *, linked: bool) -> None:
    """A pipe, or a link to one, in the place of a file."""
    os.mkfifo(pipe)
    place.unlink(missing_ok=True)
    if linked:
        place.symlink_to(pipe)
    else:
        pipe.rename(place)


@pytest.mark.parametrize("linked", [False, True], ids=["pipe", "link"])
def test_nobody_waits_at_what_is_no_plain_file_and_fsck_tells(
    used: Workspace, llmos, tmp_path: Path, linked: bool
) -> None:
    for name in KEPT:
        root = Path(shutil.copytree(used.root, tmp_path / name.replace("/", "-").replace("*", "x")))
        place = next(root.glob(name), root / name)
        pipe = root.with_name(f"{root.name}.pipe")
        stand_in(place, pipe, linked=linked)
        with nobody_waits(pipe if linked else place):
            told = llmos("-C", root, "fsck")
            others = {" ".join(each): llmos("-C", root, *each) for each in (*READING, *WRITING)}
        assert told.code == 5 and str(place.relative_to(root)).removeprefix(".llmos/") in told.out + told.err, (
            name,
            told,
        )
        assert all(each.code in (0, 5) for each in others.values()), (name, others)


def test_a_cache_that_is_no_plain_file_is_made_anew(used: Workspace, llmos, monkeypatch: pytest.MonkeyPatch) -> None:
    said = llmos("log", "--all").out
    for name in CACHES:
        stand_in(used.root / name, used.root.with_suffix(".pipe"), linked=False)
        with nobody_waits(used.root / name), monkeypatch.context() as patch:
            patch.setenv("LLMOS_READ_ONLY", "1")
            assert llmos("log", "--all").out == said
        with nobody_waits(used.root / name):
            assert llmos("log", "--all").out == said
        assert not (used.root / name).is_fifo()


def test_it_is_said_in_a_sentence_and_nothing_was_done(used: Workspace, llmos) -> None:
    for name in ("audit.jsonl", "audit.head", "operations.jsonl", "pending.json"):
        place, aside = used.dot / name, used.root.with_suffix(".aside")
        if place.exists():
            place.rename(aside)
        os.mkfifo(place)
        with nobody_waits(place):
            assert llmos("tag", "new") == Ran(
                5,
                "",
                f"error: {place} is a pipe, and no plain file\n"
                "hint: llmos did not put it there, and does not read it: move it away; `llmos fsck` says what is missing then\n",
            )
        place.unlink()
        if aside.exists():
            aside.rename(place)
        assert list(used.refs.names(TAGS)) == ["first"], name
    assert llmos("fsck").code == 0


def test_fsck_lists_all_that_stands_in_its_way(used: Workspace, llmos) -> None:
    for name in ("audit.jsonl", "operations.jsonl"):
        (used.dot / name).rename(used.root / name)
        (used.dot / name).symlink_to(used.root / name)
    assert llmos("fsck").code == 5
    assert [(each.where, each.what) for each in fsck(used).problems] == [
        (f".llmos/{name}", "is a link, and no plain file: move it away; nothing else was checked")
        for name in ("operations.jsonl", "audit.jsonl")
    ]


def test_settings_may_stand_elsewhere_and_a_folder_is_no_file(used: Workspace, llmos, tmp_path: Path) -> None:
    settings = used.root / "llmos.yaml"
    settings.rename(tmp_path / "mine.yaml")
    settings.symlink_to(tmp_path / "mine.yaml")
    assert llmos("remote", "list").code == llmos("status").code == llmos("fsck").code == 0
    settings.unlink()
    settings.mkdir()
    assert llmos("status").err.startswith(f"error: {settings} is a folder, and no plain file\n")


def test_fsck_goes_on_beyond_a_manifest_that_cannot_be_read(used: Workspace, llmos) -> None:
    manifest = used.checkpoints / used.resolve("HEAD") / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("half of one")
    assert [(each.checkpoint, each.file) for each in fsck(used).problems] == [(used.resolve("HEAD"), "manifest.json")]
