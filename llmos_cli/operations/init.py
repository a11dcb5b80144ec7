"""Begin a workspace: the store, and the configs of a template, yours to edit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import access, settings
from llmos_cli.core.atomic import write_text
from llmos_cli.core.refs import HEAD
from llmos_cli.core.view import Group, Line, Lines, Span, View
from llmos_cli.core.workspace import DOT, Workspace
from llmos_cli.errors import LlmosError
from llmos_cli.operations import templates
from llmos_cli.operations.trust import TrustedFile, named_code

GITIGNORE = """\
# Weights and runs stay out of git: llmos keeps their history. Commit llmos.yaml and configs/.
/.llmos/
/checkpoints/
/runs/
"""
_FOLDERS = ("configs", "checkpoints", "runs")


@dataclass(frozen=True)
class InitResult:
    root: str
    """Relative to the current folder."""
    template: str
    files: tuple[str, ...]
    kept: tuple[str, ...]
    code: tuple[TrustedFile, ...]
    """Python files that a config which was there already names: they run only when trusted."""

    def view(self) -> View:
        enter = [f"cd {self.root}"] if self.root != "." else []
        told: list[Line] = [("A workspace for ", Span(self.template, "name"), f" in {self.root}")]
        if self.kept:
            told.append(f"Kept what was there: {', '.join(self.kept)}")
        for file in self.code:
            said = "trusted already" if file.current else f"read it, then `llmos trust {file.path}` lets it run"
            told.append(f"Code of yours in {file.path}: {said}")
        steps = ["Next:", *(f"  {step}" for step in (*enter, "llmos config show train", "llmos train"))]
        return Group([Lines(told), Lines(steps)])


def init(directory: Path, template: str, *, shared: str | None = None, dry_run: bool = False) -> InitResult:
    """Files that are there already are the user's: they stay. `shared`: the group that is to work in it too."""
    texts = {f"configs/{name}": text for name, text in templates.read(template).items()} | {".gitignore": GITIGNORE}
    root = Workspace.vacant(directory)
    if shared and not dry_run:
        access.give_to_group([root, root / DOT], shared)
        access.work_as_group(root)
    new = [name for name in texts if not (root / name).exists()]
    workspace = Workspace(root) if dry_run else _made(root, {name: texts[name] for name in new})
    kept = tuple(sorted(set(texts) - set(new)))
    return InitResult(os.path.relpath(root), template, tuple(new), kept, tuple(named_code(workspace)))


def _made(root: Path, texts: Mapping[str, str]) -> Workspace:
    """All of it, or nothing that was not there before: configs that a full disk cut off are nobody's."""
    before = {name for name in ("", DOT, settings.NAME, *_FOLDERS) if (root / name).exists()}
    try:
        for name, text in texts.items():
            write_text(root / name, text, scratch=root / DOT / "tmp")
        return Workspace.create(root)  # last: before it, `init` can be run again
    except (LlmosError, KeyboardInterrupt):
        if not (root / DOT / HEAD).exists():  # or somebody else began it meanwhile, and it is theirs
            _take_away(root, texts, before)
        raise


def _take_away(root: Path, files: Iterable[str], before: Set[str]) -> None:
    """What `_made` left, and no file that anybody else put there meanwhile."""
    for name in (*files, *({settings.NAME} - before)):
        (root / name).unlink(missing_ok=True)
    if DOT not in before:
        shutil.rmtree(root / DOT, ignore_errors=True)
    for name in (*_FOLDERS, ""):
        if name not in before:
            with suppress(OSError):  # it was not made yet, or holds somebody's file
                (root / name).rmdir()
