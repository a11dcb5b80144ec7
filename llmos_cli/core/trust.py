"""Code that a workspace may run: hashes of files, listed per workspace in the user's own configuration folder.

A workspace comes from anywhere; a `module: my_model.py` in it runs with the user's rights. So it runs only when the user
has listed that very content, or a command that the user has listed wrote it here, which lists it; and never because of anything
written in the workspace itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_cli.core.atomic import write_text
from llmos_cli.core.listing import read_text
from llmos_cli.core.locks import lock
from llmos_cli.core.places import config_home
from llmos_cli.core.settings import NAME
from llmos_cli.errors import UNREADABLE, Corrupt, NotFound, Untrusted, UsageError

if TYPE_CHECKING:
    from llmos_cli.core.workspace import Workspace

COMMAND = f"{NAME}: "
"""Begins the name of a command of the pipeline, where trusted code is listed."""

Trusted = dict[str, str]
"""SHA-256 of a file's content -> the path it was trusted under, relative to its workspace."""


def require(ws: Workspace, path: Path, *, ask: Callable[[str], bool] | None = None) -> bytes:
    """The content of `path`, which is listed for `ws`; Untrusted (exit 5) otherwise. `ask` may list it with the user's
    consent. Whoever runs code runs these bytes: the file may be another one a moment later."""
    content = _content(path)
    name = _name(ws, path)
    if _sha256(content) in trusted(ws):
        return content
    if ask is not None and ask(f"{name} is code of this workspace and will run with your rights. Trust it?"):
        trust_contents(ws, {name: content})
        return content
    raise Untrusted(f"{name} is code that is not trusted here", hint=f"read it, then `llmos trust {name}`")


def require_text(ws: Workspace, name: str, command: str, *, ask: Callable[[str], bool] | None = None) -> None:
    """The same of a command that a file of the workspace holds, called `name` where trusted code is listed."""
    content = command_content(command)
    if _sha256(content) in trusted(ws):
        return
    if ask is not None and ask(f"{name} is a command that will run with your rights:\n  {command}\nTrust it?"):
        trust_contents(ws, {name: content})
        return
    raise Untrusted(
        f"{name} is a command that is not trusted here: {command}", hint="read it, then `llmos trust --pipeline`"
    )


def digest_text(command: str) -> str:
    return _sha256(command_content(command))


def command_content(command: str) -> bytes:
    """Never what a file may hold, so that neither is trusted for the other."""
    return b"\0sh\0" + command.encode()


def trusted(ws: Workspace) -> Trusted:
    return _read().get(str(ws.root), {})


def trust(ws: Workspace, path: Path) -> str:
    """List the content of `path`; returns its hash. UsageError for llmos.yaml: its commands are what runs, and each is trusted by itself."""
    name, content = named(ws, path)
    if name == NAME:
        raise UsageError(
            f"{name} is no code: the commands in it are, and none is trusted by trusting the file",
            hint="read them, then `llmos trust --pipeline`",
        )
    trust_contents(ws, {name: content})
    return _sha256(content)


def trust_contents(ws: Workspace, contents: Mapping[str, bytes]) -> None:
    """List all of them at once, by name. The audit hears of it first: nothing runs that nobody is known to have trusted."""
    trust_digests(ws, {name: _sha256(content) for name, content in contents.items()})


def trust_digests(ws: Workspace, digests: Mapping[str, str]) -> None:
    """The same of contents that were hashed already, name -> SHA-256."""
    if not digests:
        return
    _note(ws, f"trust {', '.join(f'{name} ({found[:12]})' for name, found in digests.items())}")
    with _locked():
        listed = _read()
        listed.setdefault(str(ws.root), {}).update({found: name for name, found in digests.items()})
        _write(listed)


def named(ws: Workspace, path: Path) -> tuple[str, bytes]:
    """What the file `path` is listed as, and its content."""
    return _name(ws, path), _content(path)


def revoke(ws: Workspace, name: str) -> list[str]:
    """Take every content that was listed as `name` off the list; returns the hashes."""
    with _locked():
        listed = _read()
        here = listed.get(str(ws.root), {})
        gone = [found for found, known in here.items() if known == name]
        if not gone:
            raise NotFound(f"{name} is not trusted here", hint="`llmos trust --list` shows what is")
        listed[str(ws.root)] = {found: known for found, known in here.items() if found not in gone}
        _write(listed)
    _note(ws, f"trust --revoke {name}")
    return gone


@contextmanager
def lent(ws: Workspace, to: Workspace) -> Iterator[None]:
    """What may run in `ws` may run in `to`, a scratch workspace that stands in for it, as long as this is open."""
    if here := trusted(ws):
        _set(to, here)
    try:
        yield
    finally:
        if trusted(to):
            _set(to, None)


def _set(ws: Workspace, files: Trusted | None) -> None:
    with _locked():
        others = {root: listed for root, listed in _read().items() if root != str(ws.root)}
        _write(others if files is None else {**others, str(ws.root): files})


def digest(path: Path) -> str:
    return _sha256(_content(path))


def _note(ws: Workspace, what: str) -> None:
    """Where the workspace cannot be written nobody else will hear of it: it is the user's own list that changed."""
    if ws.writable:
        ws.oplog.note(what)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise NotFound(f"there is no file {path}", hint="`llmos trust FILE` takes a Python file of the workspace")
    return path.read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _name(ws: Workspace, path: Path) -> str:
    absolute = path.resolve()
    return str(absolute.relative_to(ws.root) if absolute.is_relative_to(ws.root) else absolute)


def _file() -> Path:
    return config_home() / "trusted.json"


def _locked() -> AbstractContextManager[None]:
    """Two processes that each list a file must not take each other's off."""
    return lock(_file().with_name("trusted.lock"))


def _read() -> dict[str, Trusted]:
    if not _file().is_file():
        return {}
    try:
        listed = json.loads(read_text(_file(), linked=True))
        return {str(root): {str(k): str(v) for k, v in files.items()} for root, files in listed.items()}
    except UNREADABLE:
        raise Corrupt(f"{_file()} is not what llmos wrote", hint="remove it and trust again what you know") from None


def _write(listed: dict[str, Trusted]) -> None:
    write_text(_file(), json.dumps(listed, indent=2, sort_keys=True) + "\n")
    _file().chmod(0o600)
