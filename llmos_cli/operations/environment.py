"""What a checkpoint was made on: versions, machine, device, threads; recorded in its manifest, compared by `diff`."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import Any

import torch

from llmos_cli import catalog, device

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def _source() -> str:
    hasher = hashlib.sha256()
    for path in sorted(path for path in catalog.PACKAGE.rglob("*.[pc]*") if path.suffix in (".py", ".cpp")):
        hasher.update(f"{path.relative_to(catalog.PACKAGE)}\0".encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


SOURCE = _source()
"""Of llmos's own code, which changes in a checkout without another version: as this process found it, whatever is edited while it runs."""


def environment(on: torch.device | None = None) -> dict[str, Any]:
    """Plain JSON values; nothing that names the user, the host or a path."""
    on = on or device.pick()
    return {
        "llmos": version("llmos-cli"),
        "llmos_source": SOURCE,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": on.type,
        "device_name": device.device_name(on),
        "threads": device.threads(),
    }
