"""A bare workspace and a quick way to commit to it: no model, no config, just files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from llmos_cli.core.manifest import Made
from llmos_cli.core.workspace import Checkpoint, Workspace
from llmos_cli.data import snapshots
from llmos_cli.data.rows import Rows
from tests.core.tracing import Forks


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "w")


Commit = Callable[..., Checkpoint]
NUMBERS = {
    "clip_norm": 1.0,
    "hidden_weight": 0.0,
    "learning_rate": 2e-05,
    "temperature": 1e-7,
    "fraction": 0.05,
    "limit": 1e21,
}
"""As real configs have them: most can be spelt in several ways."""


@pytest.fixture
def commit(ws: Workspace) -> Commit:
    """`commit(a="text")` commits the files as a run on the current branch, with HEAD as parent unless `scratch`."""

    def make(operation: str = "train", *, scratch: bool = False, move: bool = True, **files: str) -> Checkpoint:
        return commit_to(ws, files, operation=operation, scratch=scratch, move=move)

    return make


def commit_to(
    ws: Workspace, files: Mapping[str, str], *, operation: str = "train", scratch: bool = False, move: bool = True
) -> Checkpoint:
    onto = ws.onto()
    parents = (onto.checkpoint,) if onto.checkpoint and not scratch else ()
    made = Made(
        operation,
        parents,
        {operation: {"method": "m", **NUMBERS}},
        {},
        {},
        0,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    with (
        ws.begin(operation, config=made.config, parents=parents, onto=onto, argv=["llmos", operation]) as run,
        ws.stage() as staged,
    ):
        for name, text in files.items():
            (staged / name).write_text(text)
        return run.commit(staged, made, move=move)


@pytest.fixture
def commit_with_config(ws: Workspace) -> Callable[[str], Checkpoint]:
    """`commit_with_config("seed: 1")` writes configs/train.yaml and commits a run that was given it."""

    def make(text: str) -> Checkpoint:
        (ws.configs / "train.yaml").write_text(text)
        made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
        with ws.begin("train", config={}, files=[ws.configs / "train.yaml"]) as run, ws.stage() as staged:
            (staged / "a").write_text(text)
            return run.commit(staged, made)

    return make


@pytest.fixture
def used(
    ws: Workspace, commit, commit_with_config, llmos, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Workspace:
    """With something in every folder: of checkpoints one is removed, one sealed; data is kept, and all of it is on a remote too."""
    monkeypatch.chdir(ws.root)
    monkeypatch.setenv("LLMOS_KEY", "7" * 64)
    commit_with_config("seed: 1"), commit(a="second"), commit(a="third")
    ws.snapshots.write(
        snapshots.kept({"train": Rows({"text": ["a row"]})}, source="rows", asked="", store=ws.snapshots.store)
    )
    done = [
        llmos("tag", "first", "HEAD~2"),
        llmos("rm", "HEAD~2", "--force"),
        llmos("seal", "HEAD~1"),
        llmos("remote", "add", "origin", tmp_path / "far"),
        llmos("push", "--all"),
        llmos("backup"),
    ]
    assert {each.code for each in done} == {0}, done
    return ws


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """In memory where that can be: a disk would take longer over its fsyncs than everything else together."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="module")
def forks(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Forks]:
    """A warm interpreter with what the module lists in MODULES, and a tracer on its children."""
    started = Forks(scratch, request.module.MODULES)
    yield started
    started.close()


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder is in the workspace, to be copied and watched with the rest."""
    monkeypatch.setenv("LLMOS_CONFIG_HOME", str(scratch / "w" / "home"))
