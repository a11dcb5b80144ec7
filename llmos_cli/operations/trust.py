"""Trust code of a workspace, list what is trusted, or take it back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmos_cli.core import trust as store
from llmos_cli.core.view import Span, Table
from llmos_cli.core.workspace import Workspace


@dataclass(frozen=True)
class TrustedFile:
    path: str
    sha256: str
    current: bool
    """Whether the file still has this content."""


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


def _file(ws: Workspace, name: str, digest: str) -> TrustedFile:
    path = ws.root / name
    return TrustedFile(name, digest, path.is_file() and store.digest(path) == digest)
