"""llmos itself as a cell: the very operation of `llmos quantize` or `llmos prune`, in a workspace, to the committed checkpoint."""

from __future__ import annotations

import math
import time
from typing import Any

from benchmarks.compress import contract
from llmos_cli import device
from llmos_cli.core.workspace import Workspace
from llmos_cli.events import Event, Progress
from llmos_cli.models import headers
from llmos_cli.operations import prune, quantize
from llmos_cli.operations.config import resolve

OPERATIONS: dict[str, Any] = {"quantize": quantize.quantize, "prune": prune.prune}
PROOF = "evaluate"
"""How the stages of the proof begin, by which every compression ends."""
BRIEF = "data.max_eval_samples=8"
"""Sequences of the proof: the judge sees the result anyway, on tokens that all cells share."""


def main() -> None:
    asked, clock = contract.order(), Clock()
    device.use_threads()
    ws, base, options = Workspace.find(asked.parent), asked.parent.name, asked.options
    verb = options["verb"]
    resolved = resolve(ws, verb, sets=[*options["data"], BRIEF, *options["sets"], f"seed={options['seed']}"])
    result = OPERATIONS[verb](ws, base, resolved, emit=clock.hear)
    clock.stop()
    checkpoint = ws.checkpoint(result.checkpoint)
    calibrated = checkpoint.manifest.made.data["calibration"].get("sha256", "")
    if calibrated and calibrated != options["calibration"]:
        raise SystemExit(f"calibrated on other tokens ({calibrated}) than the peers ({options['calibration']})")
    size = sum(math.prod(entry.shape) for entry in headers.of_directory(checkpoint.path).values())
    contract.report(
        asked, checkpoint.path, clock.phases, ["llmos-cli"],
        reached=result.reached, parameters=size, peak_before_proof=clock.peak,
    )  # fmt: skip


class Clock:
    """Time up to the proof and of the proof, told apart by the stage that the operation says it is in; `peak`: bytes that the process held
    at most until the proof began."""

    def __init__(self) -> None:
        self.phases, self.stage, self.peak = contract.Phases(), "compress", 0
        self.since = time.monotonic(), time.process_time()

    def hear(self, event: Event) -> None:
        if isinstance(event, Progress) and event.stage.startswith(PROOF) and self.stage == "compress":
            self.stop()
            self.stage, self.peak = "proof", device.memory_peak()

    def stop(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        self.phases.add(self.stage, wall - self.since[0], cpu - self.since[1])
        self.since = wall, cpu


if __name__ == "__main__":
    main()
