"""Code that a workspace may run: hashes of files, listed per workspace in the user's own configuration folder.

A workspace comes from anywhere; a `module: my_model.py` in it runs with the user's rights. So it runs only when the user
has listed that very content, and never because of anything written in the workspace itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.atomic import write_text
from llmos_cli.core.places import config_home
from llmos_cli.errors import Corrupt, NotFound, Untrusted

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

Trusted = dict[str, str]
"""SHA-256 of a file's content -> the path it was trusted under, relative to its workspace."""


def require(ws: Workspace, path: Path, *, ask: Callable[[str], bool] | None = None) -> None:
    """Untrusted (exit 5) unless the content of `path` is listed for `ws`; `ask` may list it with the user's consent."""
    if digest(path) in trusted(ws):
        return
    name = _name(ws, path)
    if ask is not None and ask(f"{name} is code of this workspace and will run with your rights. Trust it?"):
        trust(ws, path)
        return
    raise Untrusted(f"{name} is code that is not trusted here", hint=f"read it, then `llmos trust {name}`")


def trusted(ws: Workspace) -> Trusted:
    return _read().get(str(ws.root), {})


def trust(ws: Workspace, path: Path) -> str:
    """List the content of `path`; returns its hash."""
    listed, found = _read(), digest(path)
    listed.setdefault(str(ws.root), {})[found] = _name(ws, path)
    _write(listed)
    return found


def revoke(ws: Workspace, name: str) -> list[str]:
    """Take every content that was listed as `name` off the list; returns the hashes."""
    listed = _read()
    here = listed.get(str(ws.root), {})
    gone = [found for found, known in here.items() if known == name]
    if not gone:
        raise NotFound(f"{name} is not trusted here", hint="`llmos trust --list` shows what is")
    listed[str(ws.root)] = {found: known for found, known in here.items() if found not in gone}
    _write(listed)
    return gone


def digest(path: Path) -> str:
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _name(ws: Workspace, path: Path) -> str:
    absolute = path.resolve()
    return str(absolute.relative_to(ws.root) if absolute.is_relative_to(ws.root) else absolute)


def _file() -> Path:
    return config_home() / "trusted.json"


def _read() -> dict[str, Trusted]:
    if not _file().is_file():
        return {}
    try:
        listed = json.loads(_file().read_text(encoding="utf-8"))
        return {str(root): {str(k): str(v) for k, v in files.items()} for root, files in listed.items()}
    except (ValueError, AttributeError):
        raise Corrupt(f"{_file()} is not what llmos wrote", hint="remove it and trust again what you know") from None


def _write(listed: dict[str, Trusted]) -> None:
    write_text(_file(), json.dumps(listed, indent=2, sort_keys=True) + "\n")
    _file().chmod(0o600)
