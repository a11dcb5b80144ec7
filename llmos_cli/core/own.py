"""What of a workspace's folder is llmos's own: no file that a user or a stage wants written goes there."""

from __future__ import annotations

from pathlib import Path

from llmos_cli.core.refs import HEAD
from llmos_cli.errors import UsageError

NAMES = (".llmos", "checkpoints", "runs", "configs", "llmos.yaml")
HINT = "name a path that is not the workspace's own"


def require_other(path: Path) -> None:
    """UsageError where `path` is one of a workspace's own, of whichever workspace, or leads into one."""
    real = path.resolve()
    for folder in real.parents:
        if real.relative_to(folder).parts[0] in NAMES and (folder / NAMES[0] / HEAD).is_file():
            raise UsageError(f"{path} is no place for an output", hint=HINT)
