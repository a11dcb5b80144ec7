"""How exactly a checkpoint could be made again: to the bit, to the same metrics, or not; recorded in its manifest, tested by `reproduce`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BITWISE, METRICS, NONE = "bitwise", "metrics", "none"


def determinism(operation: str, config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """`level` and `why`, of what was made by a resolved config in an environment."""
    options = config.get(operation) or {}
    if options.get("max_seconds"):
        return {"level": NONE, "why": f"{operation}.max_seconds: how many steps there were depends on the clock"}
    if options.get("target_latency"):
        return {"level": NONE, "why": f"{operation}.target_latency: what was chosen depends on measured times"}
    if environment.get("resumed"):
        return {"level": NONE, "why": "it went on with other settings, and its config has only the last ones"}
    if environment["device"] != "cpu":
        return {"level": METRICS, "why": f"kernels on {environment['device']} add in no fixed order"}
    if environment.get("compiled") and options.get("compile") == "auto":
        return {"level": METRICS, "why": "it was compiled on the way, when that was measured to repay"}
    threads = environment["threads"]
    return {
        "level": BITWISE,
        "why": f"with these packages on {environment['device_name']}, {threads} thread{'s' if threads != 1 else ''}",
    }
