"""Optional packages: asked for by name, with the command that installs them."""

from __future__ import annotations

import importlib.util

from llmos_cli.errors import UsageError


def require(module: str, extra: str, purpose: str) -> None:
    """Say in one sentence that `purpose` needs the extra which brings `module`."""
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"{purpose} need the extra `{extra}`", hint=f"pip install 'llmos-cli[{extra}]'")
