"""A peer's pruned model healed by the loop and the options of `llmos prune --heal`: the same budget for everyone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.compress import contract
from benchmarks.compress.ours import BRIEF
from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import ignore
from llmos_cli.models.load import load
from llmos_cli.operations import lineage
from llmos_cli.operations.config import resolve
from llmos_cli.operations.eval import prepare
from llmos_cli.operations.heal import Healing, heal


def main() -> None:
    asked, phases = contract.order(), contract.Phases()
    device.use_threads()
    said = json.loads((asked.folder / "report.json").read_text())
    ws, options = Workspace.find(asked.parent), asked.options
    config = resolve(ws, "prune", sets=[*options["data"], BRIEF, f"seed={options['seed']}"]).config
    data = lineage.effective_data(ws, asked.parent.name, config.data)
    exam = prepare(ws, ws.checkpoint(asked.parent.name), data, seed=config.seed, emit=ignore)
    model = load(Path(said["model"]))
    with phases.phase("heal"):
        heal(model, load(asked.parent), exam, Healing(options["heal"], config.heal, config.seed), emit=ignore)
    model.save_pretrained(asked.folder / "healed")
    said["model"] = str(asked.folder / "healed")
    said["seconds"] |= phases.seconds
    said["cpu_seconds"] |= phases.cpu_seconds
    (asked.folder / "report.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
