"""path: the directory of a checkpoint, for transformers, vLLM and the shell."""

from __future__ import annotations

from dataclasses import dataclass

from llmos_cli.core.view import View
from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class PathResult:
    id: str
    path: str

    def view(self) -> View:
        return self.path


def path(ws: Workspace, rev: str = "HEAD") -> PathResult:
    found = ws.checkpoint(rev)
    return PathResult(found.id, str(found.path))
