"""Trust code of a workspace, list what is trusted, or take it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import trust as store
from llmos_cli.core.config import read_file
from llmos_cli.core.view import Span, Table
from llmos_cli.core.workspace import Workspace
from llmos_cli.errors import ConfigError


@dataclass(frozen=True)
class TrustedFile:
    path: str
    sha256: str
    current: bool
    """Whether the file has this content now, and it is trusted."""


@dataclass(frozen=True)
class TrustResult:
    """`files`: what is trusted here afterwards."""

    files: tuple[TrustedFile, ...]

    def view(self) -> Table | str:
        if not self.files:
            return "No code is trusted here."
        state = {True: Span("as trusted", "good"), False: Span("changed or gone", "warn")}
        return Table(
            ["file", "sha256", "now"], [(file.path, file.sha256[:12], state[file.current]) for file in self.files]
        )


def trust(ws: Workspace, path: Path | None = None, *, revoke: str | None = None) -> TrustResult:
    if path is not None:
        store.trust(ws, path)
    if revoke is not None:
        store.revoke(ws, revoke)
    return TrustResult(
        tuple(_file(ws, name, digest) for digest, name in sorted(store.trusted(ws).items(), key=lambda item: item[1]))
    )


def named_code(ws: Workspace) -> Iterator[TrustedFile]:
    """The file of code that `configs/train.yaml` names, where it is there, and whether its content is trusted.

    Nothing is trusted by being there: a folder that was cloned or unpacked is as full of somebody's code as one's own.
    """
    path = ws.configs / "train.yaml"
    try:
        model = read_file(path, ws.root).mapping.get("model") if path.is_file() else None
    except ConfigError:
        return  # `llmos config check` says what is wrong with it
    module = model.mapping.get("module") if model and isinstance(model.value, dict) else None
    if module is None or not isinstance(module.value, str):
        return
    name = module.value.partition(":")[0]
    if (ws.root / name).is_file():
        digest = store.digest(ws.root / name)
        yield TrustedFile(name, digest, digest in store.trusted(ws))


def _file(ws: Workspace, name: str, digest: str) -> TrustedFile:
    path = ws.root / name
    return TrustedFile(name, digest, path.is_file() and store.digest(path) == digest)
