"""The workspace: found from inside, moved anywhere, and honest about its checkpoints."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import Corrupt, LlmosError, NotFound, UsageError


def test_is_found_from_any_folder_inside(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = ws.root / "configs" / "deep"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert Workspace.find().root == ws.root
    assert Workspace.find(ws.root).name == "w"


def test_none_here(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Workspace.find(tmp_path)
    assert (caught.value.exit_code, caught.value.hint) == (4, "`llmos init` makes one here")


def test_is_not_made_twice_but_finished_when_cut_off(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="is a workspace already"):
        Workspace.create(ws.root)
    (ws.dot / "HEAD").unlink()
    assert Workspace.create(ws.root).head().branch == "main"


def test_without_head(ws: Workspace) -> None:
    (ws.dot / "HEAD").unlink()
    with pytest.raises(Corrupt, match="HEAD is missing"):
        Workspace.find(ws.root).head()


@pytest.mark.parametrize("text", ["format: 2\n", "# mine\nname: x\nformat: '17'\n"])
def test_a_newer_format_is_refused(ws: Workspace, text: str) -> None:
    (ws.root / "llmos.yaml").write_text(text)
    with pytest.raises(LlmosError, match="knows formats up to 1") as caught:
        Workspace.find(ws.root)
    assert "install a newer llmos" in caught.value.hint


def test_goes_on_after_it_was_moved(ws: Workspace, commit: Any, tmp_path: Path) -> None:
    checkpoint = commit(a="1")
    ws.root.rename(tmp_path / "elsewhere")
    moved = Workspace.find(tmp_path / "elsewhere")
    assert moved.checkpoint().id == checkpoint.id
    assert moved.runs.list()[0].path.parent == tmp_path / "elsewhere" / "runs"


def test_a_copy_with_other_times_is_hashed_once_and_then_trusted(ws: Workspace, commit: Any, tmp_path: Path) -> None:
    commit(a="1")
    shutil.copytree(ws.root, tmp_path / "copy", copy_function=shutil.copy)
    copy = Workspace.find(tmp_path / "copy")
    checkpoint = copy.checkpoint()
    assert copy.index.file_times(checkpoint.id) == {"a": (checkpoint.path / "a").stat().st_mtime_ns}


def test_the_same_content_made_the_same_way_is_the_same_checkpoint(ws: Workspace) -> None:
    from llmos_cli.core.manifest import Made

    made = Made("train", (), {}, {}, {}, 0, "2026-11-22T10:45:01Z")
    found = []
    for _ in range(2):
        with ws.begin("train", config={}) as run, ws.stage() as staged:
            (staged / "a").write_text("x")
            found.append(run.commit(staged, made).id)
    assert found[0] == found[1]
    assert len(list(ws.checkpoints.iterdir())) == 1


def test_nothing_staged_is_left(ws: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), ws.stage() as staged:
        (staged / "half").write_text("x")
        raise ZeroDivisionError
    assert list((ws.dot / "tmp").iterdir()) == []


def test_what_a_killed_process_staged_is_swept_by_the_next(ws: Workspace) -> None:
    pid = os.fork()
    if not pid:
        context = ws.stage()
        (context.__enter__() / "half").write_text("x")
        os._exit(9)
    os.waitpid(pid, 0)
    assert len(list((ws.dot / "tmp").iterdir())) == 1
    with ws.stage() as mine:
        assert list((ws.dot / "tmp").iterdir()) == [mine]


def test_travels_to_a_worker(ws: Workspace, commit: Any) -> None:
    checkpoint = commit(a="1")
    assert pickle.loads(pickle.dumps(ws)).resolve() == checkpoint.id


def flip(path: Path) -> None:
    """One bit, the length as it was; the time of writing changes, as it does when a program writes."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip, "weights of checkpoint {id} is not what it was when it was saved"),
        (cut, "weights of checkpoint {id} has 9 bytes instead of 10"),
        (Path.unlink, "checkpoint {id} has lost its file weights"),
    ],
)
def test_damage_is_told_by_whoever_reads(
    ws: Workspace, commit: Any, damage: Callable[[Path], None], sentence: str
) -> None:
    checkpoint = commit(weights="0123456789")
    damage(checkpoint.path / "weights")
    with pytest.raises(Corrupt) as caught:
        Workspace(ws.root).checkpoint()
    assert caught.value.message == sentence.format(id=checkpoint.id[:12])
    assert (caught.value.exit_code, caught.value.hint) == (5, "`llmos fsck` tells what else is affected")


def test_a_checkpoint_that_is_gone(ws: Workspace, commit: Any) -> None:
    shutil.rmtree(commit(a="1").path)
    with pytest.raises(Corrupt, match="is missing"):
        ws.checkpoint("main")
