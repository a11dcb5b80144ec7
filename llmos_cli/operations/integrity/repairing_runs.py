"""Repairing what runs were given: files of that hash stand in `configs/`, in other runs and on remotes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmos_cli.core import atomic, kept
from llmos_cli.core.listing import folders
from llmos_cli.core.manifest import FileEntry
from llmos_cli.core.objects import hash_file
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations.integrity.problem import Problem, Repaired

Copy = Callable[[FileEntry, Path], str | None]


def repaired(ws: Workspace, problems: Sequence[Problem], elsewhere: Copy) -> Iterator[Repaired]:
    """`elsewhere` copies what has that hash to a path, and says where it was, or None."""
    for each in problems:
        run, where = ws.root / "runs" / each.run, ws.root / each.where
        said = kept.expected(run).get(where.relative_to(run).as_posix(), ()) if each.run else ()
        for entry in [entry for entry in reversed(said) if entry is not None][:1]:
            with ws.stage() as staged:
                if source := _here(ws, where.name, entry, staged / "good") or elsewhere(entry, staged / "good"):
                    atomic.write_bytes(where, (staged / "good").read_bytes(), scratch=ws.dot / "tmp")
                    yield Repaired(each.where, source)


def _here(ws: Workspace, name: str, entry: FileEntry, target: Path) -> str | None:
    """Runs are given the same again and again."""
    runs = ws.root / "runs"
    own = [runs / each / kept.CONFIG for each in folders(runs)] if name == kept.CONFIG else []
    for path in [ws.configs / name, *own, *(runs / each / kept.CONFIGS / name for each in folders(runs))]:
        if path.is_file() and path.stat().st_size == entry.size and hash_file(path) == entry:
            target.write_bytes(path.read_bytes())
            return path.relative_to(ws.root).as_posix()
    return None
