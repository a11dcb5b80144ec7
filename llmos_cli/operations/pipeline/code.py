"""What of a stage is code, and whether it may run: a command, and the scripts of the workspace that it names.

A workspace comes from anywhere. So a command runs only when the user has listed its very text, and each script in it only
when its very content is listed (`core/trust.py`), as a model's module is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import trust

if TYPE_CHECKING:
    from llmos_cli.core.config import Resolved
    from llmos_cli.core.workspace import Workspace
    from llmos_cli.operations.pipeline.stages import Stage

ENDINGS = (".py", ".sh", ".bash", ".zsh", ".pl", ".rb", ".js", ".lua", ".r", ".R", ".awk", ".mk")


def files(ws: Workspace, stage: Stage, resolved: Resolved | None) -> list[str]:
    """The files of code that a stage runs: a model's module, or what a command names in the workspace."""
    if stage.options.sh is not None:
        return list(_scripts(ws, stage.options.sh))
    module = (resolved.mapping.get("model") or {}).get("module") if resolved else None
    return [module.partition(":")[0]] if module else []


def require(ws: Workspace, stages: Iterable[Stage], ask: Callable[[str], bool] | None) -> None:
    """Untrusted (exit 5) where a stage would run what the user has not listed; `ask` may list it with the user's consent."""
    for stage in stages:
        if stage.options.sh is None:
            continue  # a module is asked about by the verb that runs it
        trust.require_text(ws, name_of(stage), stage.options.sh, ask=ask)
        for script in _scripts(ws, stage.options.sh):
            trust.require(ws, ws.root / script, ask=ask)


def name_of(stage: Stage) -> str:
    """What a command is called where trusted code is listed."""
    return trust.COMMAND + stage.family


def _scripts(ws: Workspace, command: str) -> Iterator[str]:
    """Words of a command that name a file of the workspace which is code by its ending, its first bytes or its mode."""
    for word in dict.fromkeys(_words(command)):
        path = ws.root / word
        if word and path.is_file() and path.resolve().is_relative_to(ws.root) and _is_code(path):
            yield str(Path(word)) if not Path(word).is_absolute() else str(path.relative_to(ws.root))


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, comments=True)
    except ValueError:
        return command.split()  # an open quote: the shell will say so


def _is_code(path: Path) -> bool:
    if path.suffix in ENDINGS or os.access(path, os.X_OK):
        return True
    with open(path, "rb") as file:
        return file.read(2) == b"#!"
