"""Transports: how each family of places keeps files. A file of this folder that says `SCHEMES` and `open_store` adds one.

Nothing is imported until a URL asks for it; a URL that none of them knows goes to fsspec (`other.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from llmos_cli.core import urls
from llmos_cli.core.remote.store import Store

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
FALLBACK = "other"


def scheme(url: str) -> str:
    """`s3` of `s3://bucket/models`; `file` of a path."""
    match = _SCHEME.match(url)
    return match[1] if match else "file"


def open_store(url: str, root: Path, identity: str) -> Store:
    """`root`: what a relative path is relative to. `identity` tells the unfinished uploads of one workspace from another's. UsageError for what
    is no URL at all, as `urls.split` says it for each transport."""
    urls.split(url)
    wanted = scheme(url)
    for module in _modules():
        if wanted in module.SCHEMES:
            found: Store = module.open_store(url, root, identity)
            return found
    store: Store = importlib.import_module(f"{__name__}.{FALLBACK}").open_store(url, root, identity)
    return store


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(__path__):
        if found.name != FALLBACK:
            yield importlib.import_module(f"{__name__}.{found.name}")
