"""`--read-only`: what only reads works, what changes something refuses in a sentence, and not one byte of the workspace moves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos_cli import catalog
from llmos_cli.core import access
from llmos_cli.core.workspace import Workspace
from tests.conftest import Llmos
from tests.core.conftest import forks as forks
from tests.core.conftest import scratch as scratch
from tests.core.tracing import Call, Forks
from tests.test_bad_input_processes import read_only
from tests.test_dry_run import CASES
from tests.test_dry_run import cases as changing
from tests.test_dry_run import full as full

READING: dict[str, list[tuple[str, ...]]] = {
    "audit": [("audit",), ("audit", "--verify")],
    "branch": [("branch",)],
    "completion": [("completion",)],
    "config": [("config", "show", "train"), ("config", "schema"), ("config", "check")],
    "data": [("data", "list"), ("data", "check", "builtin:pydoc")],
    "diff": [("diff", "base", "other"), ("diff", "base", "other", "--no-tensors")],
    "doctor": [("doctor",)],
    "du": [("du",)],
    "fsck": [("fsck",), ("fsck", "--remote", "origin")],
    "generate": [("generate", "-p", "for", "--max-tokens", "2")],
    "log": [("log",), ("log", "--graph", "--all")],
    "logs": [("logs", "{run}")],
    "op": [("op", "log")],
    "path": [("path", "base")],
    "predict": [("predict", "base", "{text}", "-o", "{out}")],
    "ps": [("ps", "--all")],
    "remote": [("remote", "list")],
    "show": [("show", "base")],
    "status": [("status",)],
    "tag": [("tag",)],
    "trust": [("trust", "--list")],
}
ELSEWHERE = {
    "verify": "needs a signature: tests/operations/test_sign.py makes them, and it writes a file of the system's own",
    "eval": "answers what is on record, and must measure what is not",
    "bisect": "as eval",
}
CHANGING = [
    *changing(),
    ("stop", ("stop", "dry")),
    ("reproduce", ("reproduce", "base")),
    ("fsck", ("fsck", "--repair")),
    ("fsck", ("fsck", "--remote", "origin", "--repair")),
    ("eval", ("eval", "base", "-q")),
    ("bisect", ("bisect", "-q", "--require", "loss <= 100", "base", "other")),
    ("predict", ("predict", "base", "{text}", "-o", "inside.jsonl")),
]


def reading() -> list[tuple[str, ...]]:
    return [words for several in READING.values() for words in several]


def named(value: object) -> str | None:
    return value if isinstance(value, str) else " ".join(value[1:3]) if isinstance(value, tuple) else None


def test_every_command_is_tried():
    assert set(catalog.commands()) == {*READING, *CASES, *(name for name, _ in CHANGING), *ELSEWHERE}


@pytest.fixture(scope="module")
def told(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy with a run that died, an operation that was cut off, and an index that is behind."""
    root = tmp_path_factory.mktemp("told") / "w"
    shutil.copytree(full, root, symlinks=True)
    shutil.copytree(full.parent / "far", root.parent / "far")
    ws = Workspace.find(root)
    ws.index.entries()
    lines = ws.oplog.path.read_bytes().splitlines(keepends=True)
    (ws.dot / "pending.json").write_bytes(lines[-1])
    yield root


@pytest.fixture
def root(told: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(told)
    return told


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(access.VARIABLE, "1")


def filled(words: tuple[str, ...], root: Path, tmp_path: Path) -> list[str]:
    text = tmp_path / "rows.txt"
    text.write_text("the for statement\nis used to iterate\n")
    run = next(path.name for path in (root / "runs").iterdir())
    base = Workspace(root).resolve("base")
    unnamed = next(p.name for p in (root / "checkpoints").iterdir() if p.name not in Workspace(root).refs.pointing())
    known = {"run": run, "text": str(text), "out": str(tmp_path / "out.jsonl"), "unnamed": unnamed}
    return [word.format(**known, base=root / "checkpoints" / base) if word[0] == "{" else word for word in words]


def whole(root: Path) -> dict[str, tuple[object, ...]]:
    """Every file and folder below, caches and locks and all: content, mode and times, those of reading apart."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (content, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink)
    return found


@pytest.mark.parametrize("words", reading(), ids=named)
def test_what_reads_changes_nothing(words, root, llmos: Llmos, mode, tmp_path):
    before = whole(root)
    ran = llmos(*filled(words, root, tmp_path))
    assert ran.code == 0, ran.err
    assert whole(root) == before


@pytest.mark.parametrize("source", ["snapshot:kept", "notes.jsonl"])
def test_below_its_root_data_are_those_of_the_workspace(source, root, llmos: Llmos, mode, monkeypatch):
    monkeypatch.chdir(root / "configs")
    ran = llmos("data", "check", source, "-s", "data.task=causal-lm")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(("name", "words"), CHANGING, ids=named)
def test_what_changes_is_refused_in_one_sentence(name, words, root, llmos: Llmos, mode, tmp_path):
    before = whole(root.parent)
    ran = llmos(*filled(words, root, tmp_path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-2] == "error: this would change the workspace, and read-only mode keeps it as it is"
    assert ran.err.splitlines()[-1].startswith("hint: leave --read-only out")
    assert whole(root.parent) == before


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), changing(), ids=named)
def test_dry_runs_change_nothing_at_all(name, words, root, llmos: Llmos, mode, tmp_path):
    before = whole(root.parent)
    ran = llmos(*filled(words, root, tmp_path), "--dry-run")
    assert ran.code == 0, ran.err
    assert whole(root.parent) == before


MODULES = [
    "llmos_cli.app",
    *(f"llmos_cli.operations.{verb}" for verb in ("status", "diff", "predict", "generate", "fsck")),
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs the tool strace")
@pytest.mark.parametrize("words", [*reading(), *((*words, "--dry-run") for _, words in changing())], ids=named)
def test_the_kernel_is_asked_for_no_change(words, root, forks: Forks, mode, tmp_path):
    """Not even for one that it refused, or that changed nothing: of no path in the workspace."""
    calls = forks.calls(filled(words, root, tmp_path), root, root)
    assert [str(call) for call in calls if str(root) in written_to(call)] == []


def written_to(call: Call) -> str:
    """Copying a file's bytes out of the workspace changes the copy, and a link to a file of it makes the link."""
    at = {"sendfile": 0, "copy_file_range": 1, "symlink": 1}.get(call.name)
    return " ".join(call.paths) if at is None else call.paths[at]


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_read_only_file_system_is_read_alike(root, llmos: Llmos, tmp_path):
    """Without being told: every command that only reads, and those that change something refuse before they begin."""
    with read_only(root):
        before = whole(root)
        for words in reading():
            ran = llmos(*filled(words, root, tmp_path))
            assert ran.code == 0, f"{words}: {ran.err}"
        for name, words in [*changing(), ("stop", ("stop", "dry")), ("fsck", ("fsck", "--repair"))]:
            if name not in ("init", "clone", "restore"):
                ran = llmos(*filled(words, root, tmp_path))
                assert (ran.code, ran.out) == (1, ""), words
                assert ran.err.startswith(
                    f"error: cannot write {root / '.llmos'}: the file system is read-only\nhint: "
                )
        assert whole(root) == before
