"""The user's own folders: configuration (what is trusted) and cache (crash reports)."""

from __future__ import annotations

import os
from pathlib import Path


def config_home() -> Path:
    """`$LLMOS_CONFIG_HOME`, else `llmos` in the XDG configuration folder."""
    return _own("LLMOS_CONFIG_HOME", "XDG_CONFIG_HOME", ".config")


def cache_home() -> Path:
    """`$LLMOS_CACHE_HOME`, else `llmos` in the XDG cache folder."""
    return _own("LLMOS_CACHE_HOME", "XDG_CACHE_HOME", ".cache")


def _own(ours: str, xdg: str, usual: str) -> Path:
    if given := os.environ.get(ours):
        return Path(given)
    if base := os.environ.get(xdg):
        return Path(base) / "llmos"
    return Path.home() / usual / "llmos"
