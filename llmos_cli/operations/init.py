"""Begin a workspace: the store, and the configs of a template, yours to edit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core.atomic import write_text
from llmos_cli.core.view import Group, Lines, Span, View
from llmos_cli.core.workspace import Workspace
from llmos_cli.operations import templates

GITIGNORE = """\
# Weights and runs stay out of git: llmos keeps their history. Commit llmos.yaml and configs/.
/.llmos/
/checkpoints/
/runs/
"""


@dataclass(frozen=True)
class InitResult:
    root: str
    """Relative to the current folder."""
    template: str
    files: tuple[str, ...]

    def view(self) -> View:
        enter = [f"cd {self.root}"] if self.root != "." else []
        steps = [*enter, "llmos config show train", "llmos train"]
        return Group(
            [
                Lines([("A workspace for ", Span(self.template, "name"), f" in {self.root}: {', '.join(self.files)}")]),
                Lines([Span("Next:", "bold"), *(f"  {step}" for step in steps)]),
            ]
        )


def init(directory: Path, template: str) -> InitResult:
    configs = templates.read(template)
    workspace = Workspace.create(directory)
    for name, text in configs.items():
        write_text(workspace.configs / name, text)
    if not (workspace.root / ".gitignore").exists():
        write_text(workspace.root / ".gitignore", GITIGNORE)
    return InitResult(os.path.relpath(workspace.root), template, tuple(f"configs/{name}" for name in configs))
