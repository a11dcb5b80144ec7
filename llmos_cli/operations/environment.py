"""What a checkpoint was made on: versions, machine, device, threads; recorded in its manifest, compared by `diff`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from llmos_cli import device

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment(on: torch.device | None = None) -> dict[str, Any]:
    """Plain JSON values; nothing that names the user, the host or a path."""
    on = on or device.pick()
    return {
        "llmos": version("llmos-cli"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": on.type,
        "device_name": device.device_name(on),
        "threads": device.threads(),
    }
