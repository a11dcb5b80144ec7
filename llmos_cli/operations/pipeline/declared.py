"""Files of the workspace's own folder that a pipeline declares: what its stages read and write. With them it says the same elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core import urls
from llmos_cli.core.objects import files_below
from llmos_cli.operations.pipeline import code, stages

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace


def declared(ws: Workspace) -> set[str]:
    """Names as the workspace's folder has them, links left out; of inputs, data, configs, code and outputs."""
    if not stages.there(ws):
        return set()
    paths = {path for stage in stages.read(ws) for path in _paths(ws, stage)}
    return {name for path in paths for name in _files(ws.root, path)}


def _paths(ws: Workspace, stage: stages.Stage) -> Iterator[str]:
    options = stage.options
    yield from (*options.inputs, *options.config, *options.outputs, *stages.data_of(ws, stage))
    yield from code.files(ws, stage, stage.resolved(ws))


def _files(root: Path, path: str) -> Iterator[str]:
    """None of what lies elsewhere, or behind a link."""
    whole = Path(os.path.normpath(root / urls.path(path)))
    if whole == root or not whole.is_relative_to(root) or whole.resolve() != root.resolve() / whole.relative_to(root):
        return
    if whole.is_dir():
        names = (f"{whole.relative_to(root)}/{name}" for name in files_below(whole))
        yield from (name for name in names if _is_plain(root / name))
    elif _is_plain(whole):
        yield str(whole.relative_to(root))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
