"""The `pipeline` section of llmos.yaml: stages by name, each a verb of llmos or a shell command."""

from __future__ import annotations

from typing import Any, Literal

from llmos_cli.core.section import Section

Verb = Literal["train", "prune", "quantize", "compress", "eval", "export", "deploy"]


class StageOptions(Section):
    verb: Verb | None = None
    """What the stage does; or `sh`."""
    sh: str | None = None
    """A command for the shell, run in the workspace's folder; it runs only when it is trusted."""
    rev: str | None = None
    """The checkpoint that the stage begins from: another stage's name, or any revision."""
    set: dict[str, Any] = {}
    """Config key -> value, as `-s` takes them; of export: `export.format`, `export.type`, `export.dequantize`, `export.standalone`."""
    config: list[str] = []
    """Config files over configs/, as `-c` takes them."""
    require: list[str] = []
    """Gates of an eval stage: `METRIC OP BOUND`; where one fails, the run ends with 3 and what needs the stage does not run."""
    inputs: list[str] = []
    """Files and folders that the stage reads besides its config, its data and its REV."""
    outputs: list[str] = []
    """Files and folders that the stage writes; of export: the one it writes."""
    needs: list[str] = []
    """Stages that must be done before, though nothing of theirs is read."""
    foreach: dict[str, list[str | int | float | bool]] = {}
    """Variable -> values: one stage for each combination, called NAME/VALUE; `${VARIABLE}` stands for the value."""
