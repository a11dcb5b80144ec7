"""Tasks: one file for each kind, found by its name (`causal_lm.py` is `causal-lm`)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_cli.errors import UsageError

if TYPE_CHECKING:
    from llmos_cli.core.manifest import Manifest
    from llmos_cli.tasks.base import Task


def names() -> list[str]:
    """Every task there is: the files here that define one."""
    files = [path for path in Path(__file__).parent.glob("*.py") if "\nTASK = " in path.read_text(encoding="utf-8")]
    return sorted(path.stem.replace("_", "-") for path in files)


def load(name: str) -> Task:
    """The task of that name."""
    if name not in names():
        close = get_close_matches(name, names(), n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names())}."
        raise UsageError(f"there is no task {name}", hint=hint)
    task: Task = importlib.import_module(f"llmos_cli.tasks.{name.replace('-', '_')}").TASK
    return task


def of_checkpoint(manifest: Manifest, config_json: Mapping[str, Any]) -> Task:
    """The task a checkpoint was made for: as its manifest says, else as the class named in its config.json says."""
    recorded = (manifest.made.config.get("data") or {}).get("task")
    return load(recorded) if recorded else of_architectures(config_json)


def of_architectures(config_json: Mapping[str, Any]) -> Task:
    """The task whose suffix ends the name of the model's class."""
    architectures = [str(name) for name in config_json.get("architectures") or ()]
    for task in map(load, names()):
        if any(name.endswith(task.architecture) for name in architectures):
            return task
    known = ", ".join(architectures) or "none named in config.json"
    raise UsageError(
        f"cannot tell the task from the model's class ({known})", hint=f"Set data.task to one of {', '.join(names())}."
    )
